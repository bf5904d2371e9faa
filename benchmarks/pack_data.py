"""Carries a data set to a machine that has neither TFDS nor a network, in parts of limited size.

    python -m benchmarks.pack_data --dataset=cifar10 --data_dir=D --out=P [--part_mb=55]
    python -m benchmarks.pack_data --join=P --data_dir=E        # there

    D/cifar10/3.0.2/  --pack-->  P/part-000 ... P/parts.json  --join-->  E/cifar10/3.0.2/decoded/

A part is a stretch of one xz-compressed tar of the cache entry and of TFDS's description of the
set; ``parts.json`` has each part's size and SHA-256. A joined set loads like a prepared one, from
``decoded`` instead of the files that are not there (``tfds_source.load``):
--config.data.data_dir=E. Exit status: 0 done, 2 bad input or a damaged part.
"""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli
from zo_fl.data import cache, progress, tfds_source
from zo_fl.engine.fields import ConfigError
from zo_fl.host.files import storing, write_whole

MANIFEST = "parts.json"


def pack(name: str, data_dir: str | None, out: Path, part_bytes: int) -> str:
    """Writes a data set in parts, and returns in a line what was written.

    Args:
      name: of the set, as in ``config.data.name``.
      data_dir: where it lies, see ``datasets.load``.
      out: folder for the parts; new, or empty.
      part_bytes: of a part at most.

    Raises:
      ConfigError: no such set, or ``out`` holds something.
    """
    root = tfds_source.folder_of_sets(data_dir)
    folder = tfds_source.find(name, str(root))
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; change --out")
    entry = tfds_source.entry(folder, name)
    inside = folder.relative_to(root)
    files = [(folder / "dataset_info.json", inside / "dataset_info.json")]
    names = sorted(path for path in entry.iterdir() if path.suffix in (".npy", ".json"))
    files += [(path, inside / tfds_source.DECODED / path.name) for path in names]
    temporary = cache.temporary_folder(out.parent, out.name)  # all parts or none
    parts: Any = _Parts(temporary, part_bytes)
    try:
        with progress.bar(f"packing {name}", len(files)) as advance, storing(out):
            temporary.mkdir(parents=True)
            with tarfile.open(fileobj=parts, mode="w|xz") as tar:
                for path, arcname in files:
                    tar.add(path, str(arcname))
                    advance(1)
            parts.close()
            manifest = {"name": name, "parts": parts.about}
            write_whole(temporary / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    total = sum(part["bytes"] for part in parts.about)
    return f"{name}: {len(parts.about)} parts, {total / 1e6:.0f} MB, in {out}"


def join(parts: Path, data_dir: Path) -> str:
    """Puts a packed data set into a folder of data sets, and returns in a line where it is.

    Args:
      parts: folder that ``pack`` has filled.
      data_dir: for ``config.data.data_dir``.

    Raises:
      ConfigError: a part is missing or is not what was written, or the set is there already.
    """
    try:
        manifest = json.loads((parts / MANIFEST).read_text(encoding="utf-8"))
        about = [(parts / one["name"], one["bytes"], one["sha256"]) for one in manifest["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{parts / MANIFEST} is no list of parts ({error})") from error
    for path, size, digest in about:
        if not path.exists():
            raise ConfigError(f"{path} is missing; bring all parts of {parts / MANIFEST}")
        if path.stat().st_size != size or cache.sum_of(path) != digest:
            raise ConfigError(f"{path} is not what was written; bring it again")
    data_dir.mkdir(parents=True, exist_ok=True)
    cache.remove_leftovers(data_dir)
    temporary = cache.temporary_folder(data_dir, "join")
    try:
        with storing(data_dir):
            stream: Any = io.BufferedReader(_Joined([path for path, _, _ in about]))
            with tarfile.open(fileobj=stream, mode="r|xz") as tar:
                # Python 3.11.0 to 3.11.3 have no filters yet; digests say that it is ours.
                safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(temporary, **safely)
        (info,) = temporary.rglob("dataset_info.json")
        final = data_dir / info.parent.relative_to(temporary)
        if final.exists():
            raise ConfigError(f"{final} is there already; change --data_dir")
        final.parent.mkdir(parents=True, exist_ok=True)
        info.parent.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    cache.read_entry(final / tfds_source.DECODED)
    return f"{manifest['name']}: in {final}; use --config.data.data_dir={data_dir}"


class _Parts:
    """A file to write that is cut into files of limited size."""

    def __init__(self, folder: Path, part_bytes: int):
        self.about: list[dict[str, Any]] = []
        self._folder, self._limit, self._buffer = folder, part_bytes, bytearray()

    def write(self, content: bytes) -> int:
        self._buffer += content
        while len(self._buffer) >= self._limit:
            self._flush(self._limit)
        return len(content)

    def close(self) -> None:
        if self._buffer:
            self._flush(len(self._buffer))

    def _flush(self, size: int) -> None:
        content, name = bytes(self._buffer[:size]), f"part-{len(self.about):03d}"
        del self._buffer[:size]
        (self._folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.about.append({"name": name, "bytes": size, "sha256": digest})


class _Joined(io.RawIOBase):
    """Files to be read as one."""

    def __init__(self, paths: list[Path]):
        self._paths, self._file = list(paths), io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (content := self._file.read(len(buffer))):
            if not self._paths:
                return 0
            self._file = io.BytesIO(self._paths.pop(0).read_bytes())
        buffer[: len(content)] = content
        return len(content)


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("dataset", None, "cifar10, or another prepared set.")
    flags.DEFINE_string(
        "data_dir", None, "Folder of data sets. Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets."
    )
    flags.DEFINE_string("out", None, "Folder for the parts.")
    flags.DEFINE_float("part_mb", 55.0, "Megabytes of a part at most.", 1e-6)
    flags.DEFINE_string("join", None, "Instead: folder of the parts to put together.")


def main(argv: list[str]) -> int:
    """Packs or joins a data set and returns the exit status."""
    del argv
    given = flags.FLAGS
    if given.join is not None:
        if given.data_dir is None:
            raise ConfigError("no --data_dir given; name a folder for the data set")
        print(join(Path(given.join), Path(given.data_dir).expanduser()))
    elif given.dataset is None or given.out is None:
        raise ConfigError("give --dataset and --out to pack, or --join and --data_dir to join")
    else:
        print(pack(given.dataset, given.data_dir, Path(given.out), int(given.part_mb * 1e6)))
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)

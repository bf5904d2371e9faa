"""What a run measures, a row a round: ``metrics.jsonl`` for programs, TensorBoard events for eyes.

A row is a flat dict. Keys of every row: ``round`` (rounds done, from 1), ``phase``, ``train_loss``
(unless its method has none), ``update_norm``, ``uplink_bytes``, ``downlink_bytes`` (cumulative over
the run), ``seconds``; of rounds that were evaluated also ``test_loss``, ``test_accuracy``,
``val_loss``, ``val_accuracy`` (fractions).

The file is standard JSON, so a non-finite float, which JSON lacks, is written as null. All other
floats are written in full precision. A line ends with ``crc32``, the checksum of the line without
it: a digit that became another one is found, and the line is then no row. Who mends a line by hand
leaves it out.
"""

import json
import math
import time
import zlib
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Their names are made at import time, which pyright cannot see.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboardX.record_writer import RecordWriter

from zo_fl.engine.errors import ConfigError
from zo_fl.host.files import storing, write_whole

FILE_NAME = "metrics.jsonl"
_CHECKSUM = "crc32"
_PREFIXES = ("test_", "val_")
_TAGS = {
    "train_loss": "train/loss",
    "uplink_bytes": "comm/uplink_bytes",
    "downlink_bytes": "comm/downlink_bytes",
    "seconds": "time/seconds_per_round",
}


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard events in ``tb/``. A context manager.

    Args:
      workdir: the run's folder; made if missing.
      resume_after: rounds that are done. Later rows of an earlier, killed process are dropped, they
        will be written again. None or 0 starts afresh. What is no row is dropped too: whether they
        are whole is asked before (``whole_until``).

    Raises:
      StorageError: nothing can be written there.
    """

    def __init__(self, workdir: str | Path, resume_after: int | None = None):
        done = resume_after or 0
        path = Path(workdir) / FILE_NAME
        self._path = path
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep(path, done)
            self._file = path.open("a", encoding="utf-8")
            self._events = _Events(path.parent / "tb", done + 1)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows, in the order of their rounds, and flushes.

        Raises:
          StorageError: they cannot be written; a part may be.
        """
        with storing(self._path):
            for row in rows:
                values = {key: _standard(value) for key, value in row.items()}
                self._file.write(_line(values))
                self._events.write(values)
            self._file.flush()
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        # What could not be written was said; closing tries it again.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Events:
    """TensorBoard's side: an event a row, written at once.

    ``tensorboardX.SummaryWriter`` writes from a queue that its ``flush`` does not wait for, and
    names its files by the host and the second, so that two in a second overwrite each other.
    """

    def __init__(self, folder: Path, first_round: int):
        folder.mkdir(exist_ok=True)
        self._writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}"))
        self._add(file_version="brain.Event:2")
        # TensorBoard hides what earlier files say about this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._add(step=first_round, session_log=start)

    def write(self, row: Mapping[str, Any]) -> None:
        scalars = [
            Summary.Value(tag=_tag(key), simple_value=value)
            for key, value in row.items()
            if isinstance(value, int | float) and key != "round"
        ]
        self._add(step=row["round"], summary=Summary(value=scalars))

    def _add(self, **content: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def whole_until(path: str | Path, missing: Container[int] = ()) -> tuple[int, str]:
    """Returns up to which round rows are there, each once and in order, and what ends them.

    Args:
      path: of a ``metrics.jsonl``.
      missing: rounds that are known to have no row.

    Returns:
      (rounds, what is wrong with the next one in words; nothing where there are no further rows).
    """
    path, expected = Path(path), 1
    for number, line in enumerate(_lines(path), start=1):
        while expected in missing:
            expected += 1
        row = _row(line)
        if row is None:
            return expected - 1, f"line {number} of {path} is not a row"
        if row["round"] != expected:
            return expected - 1, f"line {number} of {path} is round {row['round']}, not {expected}"
        expected += 1
    while expected in missing:
        expected += 1
    return expected - 1, ""


def rounds_of(path: str | Path) -> set[int]:
    """Returns the rounds that have a row which can be read."""
    rows = map(_row, _lines(Path(path)))
    return {row["round"] for row in rows if row is not None}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a ``metrics.jsonl``, or of a run's folder; ``[]`` if there is no file.

    A last line that was torn by a kill is left out.

    Raises:
      ConfigError: another line is damaged.
    """
    path = Path(path)
    return [row for row, _ in _parse(path / FILE_NAME if path.is_dir() else path)]


def _parse(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Returns (row, its line) of every row."""
    lines, parsed = _lines(path), []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            parsed.append((row, line))
        elif number < len(lines):
            raise ConfigError(
                f"{path}: line {number} is not a row; mend it, or choose another --workdir"
            )
    return parsed


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _line(row: Mapping[str, Any]) -> str:
    """Returns the line of a row, its checksum included."""
    content = json.dumps(row, allow_nan=False)[:-1]
    return content + _seal(content) + "\n"


def _seal(content: str) -> str:
    """Returns how a line ends that begins with ``content``."""
    return f', "{_CHECKSUM}": "{zlib.crc32(content.encode(errors="replace")):08x}"}}'


_SEALED = len(_seal(""))


def _row(line: str) -> dict[str, Any] | None:
    """Returns the row of a line, or None if it holds none, or another one than was written."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not (isinstance(row, dict) and type(row.get("round")) is int and "phase" in row):
        return None
    # A row ends with a number; what ends with a string has a checksum, or had one.
    if line.endswith('"}') and not line.endswith(_seal(line[:-_SEALED])):
        return None
    row.pop(_CHECKSUM, None)
    return row


def _keep(path: Path, done: int) -> None:
    """Keeps the rows of rounds 1 to ``done``, once each; the file is whole, or as it was."""
    if not path.exists():
        return
    found = ((_row(line), line) for line in _lines(path))
    kept = {row["round"]: line for row, line in found if row is not None and row["round"] <= done}
    write_whole(path, "".join(f"{kept[round_idx]}\n" for round_idx in sorted(kept)))


def _standard(value: Any) -> Any:
    """Returns a value of a row as JSON knows it; NumPy and JAX scalars become Python's."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tag(key: str) -> str:
    return f"eval/{key}" if key.startswith(_PREFIXES) else _TAGS.get(key, f"train/{key}")

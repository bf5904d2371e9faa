"""The measurements of a run, a row a round: ``metrics.jsonl``, and TensorBoard events.

A row is a flat dict. Keys of every row: ``round`` (rounds done, from 1), ``phase``, ``train_loss``
(unless its method has none), ``update_norm``, ``uplink_bytes``, ``downlink_bytes`` (cumulative over
the run), ``seconds``; rounds that were evaluated also have ``test_loss``, ``test_accuracy``,
``val_loss``, ``val_accuracy`` (fractions).

The file is standard JSON: a float that is not finite, which JSON lacks, is null.
"""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter

# Their names are made at import time, which pyright cannot see.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

from zo_fl.engine.fields import ConfigError
from zo_fl.host.files import as_json, path_of, storing, write_whole
from zo_fl.host.units import is_number

FILE_NAME = "metrics.jsonl"
_TAGS = {
    "train_loss": "train/loss",
    "uplink_bytes": "comm/uplink_bytes",
    "downlink_bytes": "comm/downlink_bytes",
    "seconds": "time/seconds_per_round",
}


class MetricsWriter(AbstractContextManager["MetricsWriter"]):
    """Appends rows to ``metrics.jsonl`` and to TensorBoard events in ``tb/``. A context manager.

    Args:
      folder: of the run; made if missing.
      resume_after: rounds that are done. Later rows are dropped, as they will be written again; so
        are lines that are no row.

    Attributes:
      lost: rounds up to ``resume_after`` that have no row any more.

    Raises:
      StorageError: nothing can be written there.
    """

    def __init__(self, folder: str | Path, resume_after: int = 0):
        self._path = Path(folder) / FILE_NAME
        events = self._path.parent / "tb"
        with storing(self._path):
            events.mkdir(parents=True, exist_ok=True)
            self.lost = _keep(self._path, resume_after)
            self._file = self._path.open("a", encoding="utf-8")
            # Not SummaryWriter: its thread may be late, and hangs at the end if the disk is full.
            # A name of its own, as two starts within a second would overwrite each other.
            self._events = EventsWriter(str(events / "events"), f".{time.time_ns()}")
            # With it TensorBoard hides this step and later ones in earlier files.
            self._add(step=resume_after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows, in the order of their rounds, and flushes.

        Raises:
          StorageError: they cannot be written; a part may be.
        """
        with storing(self._path):
            for row in rows:
                plain = as_json(row)
                self._file.write(json.dumps(plain, allow_nan=False) + "\n")
                numbers = {key: value for key, value in plain.items() if is_number(value)}
                step = numbers.pop("round")
                scalars = [Summary.Value(tag=_tag(k), simple_value=v) for k, v in numbers.items()]
                self._add(step=step, summary=Summary(value=scalars))
            self._file.flush()
            self._events.flush()

    def _add(self, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), **content))

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._events):
            with suppress(OSError):  # it was raised when it was written; closing tries it again
                file.close()

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a ``metrics.jsonl``, or of a run's folder; ``[]`` if there is no file.

    A last line that was torn by a kill is left out.

    Raises:
      ConfigError: another line is damaged.
    """
    path = path_of(path)
    path = path / FILE_NAME if path.is_dir() else path
    rows = [_row(line) for line in _lines(path)]
    if None in rows[:-1]:
        raise ConfigError(
            f"{path}: line {rows.index(None) + 1} is not a row; mend it, or choose another "
            "--workdir"
        )
    return [row for row in rows if row is not None]


def _keep(path: Path, done: int) -> list[int]:
    """Keeps the rows of rounds 1 to ``done``, once each; returns the rounds without a row."""
    found = ((_row(line), line) for line in _lines(path))
    kept = {row["round"]: line for row, line in found if row is not None and row["round"] <= done}
    if path.exists():
        write_whole(path, "".join(f"{kept[round_idx]}\n" for round_idx in sorted(kept)))
    return [round_idx for round_idx in range(1, done + 1) if round_idx not in kept]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _row(line: str) -> dict[str, Any] | None:
    """Returns the row of a line, or None if it holds none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    is_row = isinstance(row, dict) and type(row.get("round")) is int and "phase" in row
    return row if is_row else None


def _tag(key: str) -> str:
    is_evaluation = key.startswith(("test_", "val_"))
    return f"eval/{key}" if is_evaluation else _TAGS.get(key, f"train/{key}")

"""The paper's results, from ``paper.json``: its only place in this package.

A figure is compared only with runs of the same data, model and population: see ``requires`` there.

Source: Legate, Rish, Belilovsky, arXiv 2509.03503.
"""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import runs

# Other sets, such as the sample that comes with the package, are not the paper's.
_SETS = {"cifar10": "cifar10", "imagenet_resized/32x32": "imagenet32"}


class Figure(NamedTuple):
    """A result of the paper in percent; ``mean`` None where only the spread is given."""

    mean: float | None
    std: float | None
    converged: bool = True


def lookup(table: str, config: Mapping[str, Any], row: str, column: str) -> Figure | None:
    """Returns the paper's result for a point, None where it has none or the runs differ from it.

    Args:
      table: a name in ``paper.json``, such as ``Table 2``.
      config: of a run of the point.
      row: of the table.
      column: of the table.
    """
    entry = _read().get(table, {})
    found = entry.get("sets", {}).get(_SETS.get(runs.dotted(config, "data.name"), ""))
    if not found or column not in found["columns"] or row not in found["rows"]:
        return None
    if any(runs.dotted(config, field) != value for field, value in found["requires"].items()):
        return None
    value = found["rows"][row][found["columns"].index(column)]
    if value == "nc":
        return Figure(None, None, converged=False)
    if entry.get("quantity") == "variance":
        return Figure(None, math.sqrt(value[0]))
    return Figure(*value)


def is_paper_data(config: Mapping[str, Any]) -> bool:
    """Returns whether a run's data set is one of the paper's."""
    return runs.dotted(config, "data.name") in _SETS


def source(table: str) -> str:
    """Returns where a table's figures come from, "" if there are none."""
    return _read().get(table, {}).get("source", "")


def note(table: str, compared: bool) -> str:
    """Returns what a reader of a table should know, or "".

    Args:
      table: a name in ``paper.json``.
      compared: whether the paper's figures are shown; without them only a note that stands for
        figures which no run can be compared with is returned.
    """
    entry = _read().get(table, {"sets": None})
    return entry.get("note", "") if compared or entry["sets"] == {} else ""


@functools.cache
def _read() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))

"""The paper's results, from ``paper.json``, their only place in this package.

A figure stands only beside runs of the paper's own setting: each field that the paper fixes must be
equal, if the run's algorithm reads it. In the file, ``setting`` holds what all tables share;
``requires``, ``rows`` and ``columns`` of a table hold its changes, of which the later ones count. A
list holds all values that fit; "> 0" is any positive number, for rates, which the paper does not
report. Participation, HeteroFL's epochs and the like come from its author's public code.

Source: Legate, Rish, Belilovsky, arXiv 2509.03503.
"""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zo_fl import config as configs
from zo_fl import methods
from zo_fl.host.units import is_number

from . import runs

# Other sets, such as the sample that comes with the package, are not the paper's.
_SETS = {"cifar10": "cifar10", "imagenet_resized/32x32": "imagenet32"}
_POSITIVE = "> 0"


class Figure(NamedTuple):
    """A result of the paper in percent; ``mean`` None where only the spread is given."""

    mean: float | None
    std: float | None
    converged: bool = True


class Known(NamedTuple):
    """The paper's result for a point, and the fields in which the runs differ from its setting."""

    figure: Figure
    differences: tuple[str, ...]


def known(table: str, config: Mapping[str, Any], row: str, column: str) -> Known | None:
    """Returns the paper's result for a point and how the setting differs; None if it has none.

    Args:
      table: a name in ``paper.json``, such as ``Table 2``.
      config: of a run of the point.
      row: the point's.
      column: the point's.
    """
    entry = _read()["tables"].get(table, {"sets": {}})
    results = entry["sets"].get(_SETS.get(runs.dotted(config, "data.name"), ""), {})
    if row not in results or column not in entry["columns"]:
        return None
    value = results[row][list(entry["columns"]).index(column)]
    required = entry["requires"] | entry["rows"][row] | entry["columns"][column]
    return Known(_figure(value, entry), differences(_read()["setting"] | required, config))


def lookup(table: str, config: Mapping[str, Any], row: str, column: str) -> Figure | None:
    """Returns the paper's result for a point, None where it has none or the runs differ from it."""
    found = known(table, config, row, column)
    return found.figure if found and not found.differences else None


def differences(required: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a phrase for each required field that a config reads and has otherwise."""
    read = {"algorithm"} | blocks_read(str(config.get("algorithm")))
    found = []
    for field, wanted in required.items():
        value = runs.dotted(config, field)
        if value is None:  # of a version that had no such field
            value = runs.dotted(_defaults(), field)
        if field.split(".")[0] in read and not _fits(value, wanted):
            found.append(f"{field} = {_shown(value)} instead of {_shown(wanted)}")
    return tuple(found)


@functools.cache
def _defaults() -> dict[str, Any]:
    return configs.default().to_dict()


def blocks_read(algorithm: str) -> set[str]:
    """Returns the blocks that an algorithm reads; parts of another version are left out."""
    return configs.blocks_read(part for part in methods.parts(algorithm) if part in methods.METHODS)


def is_paper_data(config: Mapping[str, Any]) -> bool:
    """Returns whether a run's data set is one of the paper's."""
    return runs.dotted(config, "data.name") in _SETS


def source(table: str) -> str:
    """Returns the source of a table's figures, "" if there are none."""
    return _read()["tables"].get(table, {}).get("source", "")


def note(table: str, compared: bool) -> str:
    """Returns the note for readers of a table, or "".

    If the paper's figures are not ``compared``, a note stands only in place of figures that there
    are not.
    """
    entry = _read()["tables"].get(table, {"sets": None})
    return entry.get("note", "") if compared or entry["sets"] == {} else ""


def _figure(value: Any, entry: Mapping[str, Any]) -> Figure:
    if value == "nc":
        return Figure(None, None, converged=False)
    if entry.get("quantity") == "variance":
        return Figure(None, math.sqrt(value[0]))
    return Figure(*value)


def _fits(value: Any, wanted: Any) -> bool:
    if wanted == _POSITIVE:
        return is_number(value) and value > 0
    return value in wanted if isinstance(wanted, list) else value == wanted


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def _read() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))

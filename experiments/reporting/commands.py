"""The command that repeats a run, bit for bit where the machine is the same."""

import shlex
from collections.abc import Mapping
from typing import Any

from zo_fl import config as configs

from . import plain_runs
from .runs import Run, SweepRuns

_BASE = "configs/base.py"


def of_run(sweep: SweepRuns, run: Run) -> str:
    """Returns the command line of a run; it computes a warm-up that the run shared with others."""
    if plain_runs.is_plain(sweep):
        return _line(_BASE, _unlike_base(run.config))
    point = next(
        point
        for point in sweep.record["points"]
        if (point["row"], point["column"]) == (run.row, run.column)
    )
    paired = {"seed": run.seed, "data.partition_seed": run.seed}
    changes = sweep.record.get("overrides", {}) | point["overrides"] | paired
    return _line(sweep.record["config"], changes)


def _unlike_base(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that the run read and ``configs/base.py`` has otherwise."""
    defaults = configs.flatten(configs.default().to_dict())
    return {
        field: value
        for field, value in plain_runs.fields_read(config).items()
        if field not in defaults or _text(defaults[field]) != _text(value)
    }


def _line(config_file: str, changes: Mapping[str, Any]) -> str:
    fields = [f"--config.{field}={_text(value)}" for field, value in changes.items()]
    return shlex.join(["python", "-m", "experiments.main", f"--config={config_file}", *fields])


def _text(value: Any) -> str:
    """Returns a value as a flag takes it; JSON has made lists of tuples."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(tuple(value)) if isinstance(value, list | tuple) else str(value)

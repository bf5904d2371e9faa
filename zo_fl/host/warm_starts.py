"""Starting a run after a warm-up that another run has done already.

Runs of one seed that differ only in what follows the pivot share their warm-up; so do warm-ups of
which one is longer. It is computed once, as a run of its own with ``algorithm="fedavg"``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zo_fl.core.errors import ConfigError
from zo_fl.core.types import ServerState
from zo_fl.host import workdir
from zo_fl.host.checkpoint import Checkpoints

# What decides a warm-up's result, and what decides which rounds of it are evaluated.
_BLOCKS = ("seed", "data", "model", "warmup")
_CADENCE = ("eval_every", "eval_batch_size", "eval_precision")


def check(config: Mapping[str, Any], donor: Path) -> None:
    """Checks that a folder holds a finished warm-up that a run of ``config`` would repeat.

    Raises:
      ConfigError: it does not; says which field differs.
    """
    begins = config["algorithm"].split("+")[0]
    if begins not in ("zowarmup", "fedavg"):
        raise ConfigError(
            f"algorithm {config['algorithm']!r} has no warm-up to start after; allowed: zowarmup, "
            "fedavg, fedavg+...; change config.algorithm or leave out --warm_start"
        )
    summary = workdir.read_json(donor / "summary.json")
    saved = workdir.read_json(donor / "config.json")
    if summary is None or saved is None or summary["diverged_round"] is not None:
        raise ConfigError(f"{donor} holds no finished run; change --warm_start")
    earlier = saved["config"]
    if earlier["algorithm"] != "fedavg":
        raise ConfigError(
            f"{donor} holds a run of {earlier['algorithm']}, not of fedavg; change --warm_start"
        )
    given, had = _relevant(config), _relevant(earlier)
    for field in sorted(given):
        if given[field] != had.get(field):
            raise ConfigError(
                f"{donor} was run with config.{field}={had.get(field)!r}, given {given[field]!r}; "
                "a warm-up is shared by equal settings only; change --warm_start"
            )
    done, wanted = earlier["warmup"]["num_rounds"], config["warmup"]["num_rounds"]
    if done > wanted:
        raise ConfigError(
            f"{donor} has {done} rounds, config.warmup.num_rounds={wanted}; a warm start is at "
            "most as long; change --warm_start"
        )


def restore(donor: Path, like: ServerState) -> tuple[int, ServerState, dict[str, Any]]:
    """Returns ``(rounds done, state, progress)`` at the end of a warm-up.

    Args:
      donor: the warm-up's folder, checked.
      like: a state of the same structure.

    Raises:
      ConfigError: its checkpoint is missing, or of another structure.
    """
    restored = Checkpoints(donor).restore_latest(like)
    if restored is None:
        raise ConfigError(f"{donor} has no checkpoint any more; change --warm_start")
    return restored


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = workdir.flatten({name: config[name] for name in _BLOCKS})
    fields |= {f"run.{name}": config["run"][name] for name in _CADENCE}
    del fields["warmup.num_rounds"]
    return fields

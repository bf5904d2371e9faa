"""Going on: with a run's own folder, or after phases that another run has done already.

Runs of one seed that begin alike share that beginning: a run of it alone is what they start from. A
shorter last phase is the start of a longer one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zo_fl import config as configs
from zo_fl import methods
from zo_fl.engine.fields import ConfigError
from zo_fl.host import files

# What decides which rounds are evaluated, and how.
_CADENCE = ("eval_every", "eval_batch_size")
_HOW, _WHERE = "run.", "data.data_dir"


def differences(
    earlier: Mapping[str, Any], config: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Returns why a run of ``config`` cannot go on with an earlier one: ``(field, then, now)``.

    How a run is run, and where its data lie, may change; the last method may get more rounds.

    Raises:
      ConfigError: the earlier config is of another version of this program.
    """
    then, now = (
        {f: v for f, v in configs.identity(one).items() if not f.startswith(_HOW) and f != _WHERE}
        for one in (earlier, config)
    )
    if is_longer(earlier, config):
        rounds = _rounds_field(methods.parts(config["algorithm"]))
        then[rounds] = now[rounds]
    fields = sorted(then.keys() | now.keys())
    return [(f, then.get(f), now.get(f)) for f in fields if then.get(f) != now.get(f)]


def is_longer(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Returns whether the last method has more rounds than it had, and may go on for them."""
    parts = methods.parts(config["algorithm"])
    if parts != methods.parts(earlier["algorithm"]):
        return False
    more = last_rounds(earlier, parts) < last_rounds(config, parts)
    return more and methods.METHODS[parts[-1]].extendable(config)


def shared(config: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Returns the fields that decide the result of a run's first methods, by dotted names.

    The number of rounds of the last of them is left out, unless it cannot be extended.

    Args:
      config: resolved.
      parts: keys of ``METHODS``, the first of those that the run's method stands for.
    """
    found = configs.flatten({name: config[name] for name in sorted(configs.blocks_read(parts))})
    found |= {f"run.{name}": config["run"][name] for name in _CADENCE}
    found |= {"seed": config["seed"], "algorithm": "+".join(parts)}
    if methods.METHODS[parts[-1]].extendable(config):
        del found[_rounds_field(parts)]
    return found


def last_rounds(config: Mapping[str, Any], parts: Sequence[str]) -> int:
    """Returns the number of rounds of the last of a run's first methods."""
    block, field = _rounds_field(parts).split(".")
    return config[block][field]


def check(config: Mapping[str, Any], donor: Path) -> None:
    """Checks that a folder holds a finished run that a run of ``config`` would begin with.

    Raises:
      ConfigError: it does not; says which field differs.
    """
    summary = files.read_json(donor / "summary.json")
    saved = files.read_json(donor / "config.json")
    if summary is None or saved is None or summary["diverged_round"] is not None:
        raise ConfigError(f"{donor} holds no finished run; change --warm_start")
    earlier = configs.read_by(saved["config"])
    mine, parts = methods.parts(config["algorithm"]), methods.parts(earlier["algorithm"])
    if mine[: len(parts)] != parts:
        raise ConfigError(
            f"{donor} holds a run of {earlier['algorithm']}, config.algorithm="
            f"{config['algorithm']!r} does not begin with it; change --warm_start"
        )
    given, had = shared(config, parts), shared(earlier, parts)
    for field in sorted(given):
        if given[field] != had[field]:
            raise ConfigError(
                f"{donor} was run with config.{field}={had[field]!r}, given {given[field]!r}; "
                "only runs of equal settings share a beginning; change --warm_start"
            )
    done, wanted = last_rounds(earlier, parts), last_rounds(config, parts)
    if done > wanted:
        raise ConfigError(
            f"{donor} has {done} rounds, config.{_rounds_field(parts)}={wanted}; a warm start is "
            "at most as long; change --warm_start"
        )


def _rounds_field(parts: Sequence[str]) -> str:
    return methods.METHODS[parts[-1]].rounds

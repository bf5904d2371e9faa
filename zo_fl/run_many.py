"""Several seeds of one config, or several values of a number of it, as one program.

``Compiled`` maps first states and chunks over states, keys and numbers with ``vmap``; the loop
knows nothing of it. Each run has its folder, as if it had run alone, but for the ledger, because a
replay would round otherwise. For small models: all states are on the device at once, and
convolutions become grouped ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zo_fl import api, experiment
from zo_fl import config as configs
from zo_fl.api import Config, Summary
from zo_fl.config import warm_starts
from zo_fl.engine.fields import ConfigError
from zo_fl.experiment import Experiment
from zo_fl.host import devices, files, processes
from zo_fl.host.screen import Stopwatch


def run_seeds(
    config: Any, path: str | Path, num_seeds: int, *, quiet: bool = False
) -> list[Summary]:
    """Runs seeds of a config, from its own on, as one program, and returns their summaries.

    The partition is the config's for all of them. Each has a folder ``path/SEED``, equal to that of
    ``zo_fl.run`` up to the rounding of batched arithmetic.

    Args:
      config: as for ``zo_fl.run``.
      path: folder of the folders.
      num_seeds: at least 1.
      quiet: no progress output.

    Raises:
      ConfigError, Interrupted: as ``zo_fl.run``; or some of the folders are further than others.
    """
    if num_seeds < 1:
        raise ConfigError(f"{num_seeds} seeds asked for; allowed: 1 or more; change --vmap_seeds")
    first = api.resolve(config)
    resolved = [api.resolve(first, {"seed": first["seed"] + i}) for i in range(num_seeds)]
    return run_together(
        resolved, [files.path_of(path) / str(one["seed"]) for one in resolved], quiet=quiet
    )


def run_values(
    config: Any, path: str | Path, field: str, values: Sequence[float], *, quiet: bool = False
) -> list[Summary]:
    """Runs a config with several values of a number as one program, and returns their summaries.

    Each has a folder ``path/VALUE``; see ``run_seeds``.

    Args:
      config: as for ``zo_fl.run``.
      path: folder of the folders.
      field: dotted, such as ``zo.lr``: one that may vary (``Field.varies``).
      values: of the field, no two alike.
      quiet: no progress output.

    Raises:
      ConfigError, Interrupted: as ``run_seeds``; or the field may not vary.
    """
    first = api.resolve(config)
    resolved = [api.resolve(first, {field: value}) for value in values]
    names = [str(value) if isinstance(value, str) else f"{value:g}" for value in values]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"config.{field} in {', '.join(names) or 'no values'}: allowed: one value or more, no "
            "two alike; change --vmap_values"
        )
    return run_together(resolved, [files.path_of(path) / name for name in names], quiet=quiet)


def run_together(
    configs_: Sequence[Mapping[str, Any]],
    paths: Sequence[str | Path],
    *,
    warm_start: str | Path | None = None,
    quiet: bool = False,
) -> list[Summary]:
    """Runs configs that differ in their seed and in numbers that may vary as one program.

    ``paths`` are the folder of each; all start after the same ``warm_start``. Returns and raises as
    ``run_values``.
    """
    devices.begin()
    resolved, folders = [api.resolve(one) for one in configs_], [*map(files.path_of, paths)]
    configs.numbers_that_differ(resolved)
    donor = None if warm_start is None else files.path_of(warm_start)
    processes.check_same([resolved, str(donor)], "configs or warm starts")
    done = [api.finished(one, path, None) for one, path in zip(resolved, folders, strict=True)]
    left = [i for i, summary in enumerate(done) if summary is None]
    if len(left) == 1:
        (i,) = left
        done[i] = api.run(resolved[i], folders[i], warm_start=donor, quiet=quiet)
    elif left:
        found = _run([resolved[i] for i in left], [folders[i] for i in left], donor, quiet)
        for i, summary in zip(left, found, strict=True):
            done[i] = summary
    return [summary for summary in done if summary is not None]


def _run(
    resolved: list[Config], paths: list[Path], donor: Path | None, quiet: bool
) -> list[Summary]:
    """Runs several configs of which none is finished, and returns their summaries."""
    clock = Stopwatch()
    with processes.agreed():
        if donor is not None:
            for one in resolved:
                warm_starts.check(one, donor)
        built = experiment.build(resolved[0])
        _check(built)
    with api.owned(paths):
        runs = dict(zip(paths, resolved, strict=True))
        return api.execute(built, runs, clock, donor, quiet=quiet)


def _check(built: Experiment) -> None:
    if built.engine.streamed:
        raise ConfigError(
            "runs side by side draw different cohorts, so their data cannot be streamed; set "
            "config.run.data to 'device', or leave out --vmap_seeds and --vmap_values"
        )
    stopped = [phase.name for phase in built.phases if phase.stop is not None]
    if stopped:
        raise ConfigError(
            f"{stopped[0]} ends when it has done what it can, at another round for each of several "
            "runs; let it have all its rounds (check_every='none', or stop='fixed'), or leave out "
            "--vmap_seeds and --vmap_values"
        )

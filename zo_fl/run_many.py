"""Several seeds of one config, or several values of a number of it, as one program.

The same first states and chunks, mapped over states, keys and numbers with ``vmap``; the loop knows
nothing of it. Each run has its folder, as if it had run alone, but for the ledger: it rounds
otherwise than a replay would. For small models: all states are on the device at once, and
convolutions become grouped ones.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl import api, experiment, loop, saved_model
from zo_fl import config as configs
from zo_fl.api import Config, Interrupted
from zo_fl.compiled import Compiled
from zo_fl.config import warm_starts
from zo_fl.engine import keys
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Array, PyTree
from zo_fl.experiment import Experiment
from zo_fl.host import devices, processes
from zo_fl.host.folder import Position, RunFolder
from zo_fl.host.screen import Progress, Stopwatch
from zo_fl.host.signals import deferred_signals
from zo_fl.loop import Chunk


class Together:
    """The mapping over runs that differ in their seed and in some numbers.

    Args:
      resolved: a config each.

    Attributes:
      numbers: dotted field -> ``f32[runs]``, the values in which they differ.
    """

    def __init__(self, resolved: Sequence[Config]):
        self._seeds = [one["seed"] for one in resolved]
        differ = configs.numbers_that_differ(resolved)
        self.numbers = {field: np.asarray(of, np.float32) for field, of in differ.items()}

    def run_keys(self) -> Array:
        """Returns the runs' keys ``key[runs]``."""
        return jnp.stack([keys.run_key(seed) for seed in self._seeds])

    def lift(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """Returns a function of one run as one of all runs; see ``jax.vmap``."""
        return jax.vmap(function, in_axes=in_axes)


def run_seeds(
    config: Any, path: str | Path, num_seeds: int, *, quiet: bool = False
) -> list[dict[str, Any]]:
    """Runs ``num_seeds`` seeds of a config as one program, and returns their summaries.

    Seed i is ``config["seed"] + i``; the partition is the config's for all of them. Each has a
    folder ``path/SEED``, equal to that of ``zo_fl.run`` up to the rounding of batched arithmetic.

    Args:
      config: as for ``zo_fl.run``.
      path: folder of the folders.
      num_seeds: at least 1.
      quiet: no progress output.

    Raises:
      ConfigError: as for ``zo_fl.run``, or some of the folders are further than others.
      Interrupted: as for ``zo_fl.run``.
    """
    if num_seeds < 1:
        raise ConfigError(f"{num_seeds} seeds asked for; allowed: 1 or more; change --vmap_seeds")
    first = api.resolve(config)
    resolved = [api.resolve(first, {"seed": first["seed"] + i}) for i in range(num_seeds)]
    return run_together(resolved, [Path(path) / str(one["seed"]) for one in resolved], quiet=quiet)


def run_values(
    config: Any,
    path: str | Path,
    field: str,
    values: Sequence[float],
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Runs a config with several values of a number as one program, and returns their summaries.

    Each has a folder ``path/VALUE``; see ``run_seeds``.

    Args:
      config: as for ``zo_fl.run``.
      path: folder of the folders.
      field: dotted, such as ``zo.lr``: one that may vary (``Field.varies``).
      values: of the field, no two alike.
      quiet: no progress output.

    Raises:
      ConfigError: as for ``run_seeds``, or a field that may not vary.
      Interrupted: as for ``zo_fl.run``.
    """
    first = api.resolve(config)
    resolved = [api.resolve(first, {field: value}) for value in values]
    names = [str(value) if isinstance(value, str) else f"{value:g}" for value in values]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"config.{field} in {', '.join(names) or 'no values'}: allowed: one value or more, no "
            "two alike; change --vmap_values"
        )
    return run_together(resolved, [Path(path) / name for name in names], quiet=quiet)


def run_together(
    configs_: Sequence[Mapping[str, Any]],
    paths: Sequence[str | Path],
    *,
    warm_start: str | Path | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Runs configs that differ in their seed and in numbers that may vary as one program.

    Args:
      configs_: as for ``zo_fl.run``.
      paths: the folder of each.
      warm_start: as for ``zo_fl.run``; of all of them.
      quiet: no progress output.

    Returns:
      The content of each one's ``summary.json``.

    Raises:
      ConfigError: as for ``run_values``.
      Interrupted: as for ``zo_fl.run``.
    """
    devices.prepare()
    resolved, folders = [api.resolve(one) for one in configs_], [Path(path) for path in paths]
    configs.numbers_that_differ(resolved)
    donor = None if warm_start is None else Path(warm_start)
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
) -> list[dict[str, Any]]:
    """Runs several configs of which none is finished, and returns their summaries."""
    clock, options = Stopwatch(), resolved[0]["run"]
    with processes.agreed():
        if donor is not None:
            for one in resolved:
                warm_starts.check(one, donor)
        built = experiment.build(resolved[0])
        _check(built)
    with api.owned(paths), deferred_signals() as interrupted:
        made = [
            api.begin(built, one, path, None, quiet=True)
            for one, path in zip(resolved, paths, strict=True)
        ]
        compiled = Compiled(built, options, together=Together(resolved))
        folders = [RunFolder(path, clock) for path in paths]
        position, state = _resume(compiled, folders, donor)
        screen = Progress(api.planned(compiled), position.done, quiet=api.is_quiet(quiet))
        chunks = loop.rounds(compiled, state, position, options, clock, screen)
        with ExitStack() as stack:
            for run_folder, made_by in zip(folders, made, strict=True):
                run_folder.open(position.done, made_by)
                stack.callback(run_folder.close)
            stack.enter_context(screen)
            schedule, alive = compiled.planned, dict(enumerate(folders))
            summaries: dict[int, dict[str, Any]] = {}
            for chunk in chunks:
                state, after = chunk.state, chunk.position.done
                rows = {
                    i: api.write(_part(chunk, i), run_folder) for i, run_folder in alive.items()
                }
                api.show(chunk, next(iter(rows.values())), list(alive.values()), screen)
                for i in [i for i, one in alive.items() if one.record.divergence is not None]:
                    # Now: it will not be resumed with the others.
                    summaries[i] = alive.pop(i).finish(api.title(resolved[i]), schedule, after)
                if not alive:
                    break
                stops = processes.any_of(interrupted())
                if stops or after % options["checkpoint_every"] == 0 or after == chunk.phase.end:
                    for i, run_folder in alive.items():
                        run_folder.save(_take(state, i), chunk.position, schedule)
                if stops:
                    raise Interrupted(f"stopped after round {after} of {schedule.end}")
        model = compiled.model_of(schedule.phases[-1].phase.model, state)
        for i, run_folder in alive.items():
            saved_model.save(run_folder.path, _take(model, i), built.federation.dataset, None)
            summaries[i] = run_folder.finish(api.title(resolved[i]), schedule, schedule.end)
        return [summaries[i] for i in range(len(folders))]


def _resume(
    compiled: Compiled, folders: Sequence[RunFolder], donor: Path | None
) -> tuple[Position, PyTree]:
    """Returns the latest position that all runs have saved, and their states as one."""

    def like(i: int, at: Position) -> PyTree:
        return _take(loop.first_state(compiled, at), i)

    for i, run_folder in enumerate(folders if donor is not None else ()):
        assert donor is not None
        api.adopt(compiled, run_folder, donor, functools.partial(like, i))
    position = min(run_folder.newest() for run_folder in folders)
    if not position.done:
        return position, loop.first_state(compiled, position)
    states = [f.restore(position.done, like(i, position)) for i, f in enumerate(folders)]
    if any(state is None for state in states):
        raise ConfigError(
            f"a checkpoint of round {position.done} of runs side by side is damaged; start again "
            "with another --workdir"
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return position, jax.device_put(stacked, compiled.replicated)


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
            "runs; let it have all its rounds (check_every=0, or stop='fixed'), or leave out "
            "--vmap_seeds and --vmap_values"
        )


def _part(chunk: Chunk, i: int) -> Chunk:
    """Returns one run's part of a chunk of several."""
    state, metrics, measured = _take((chunk.state, chunk.metrics, chunk.measured), i)
    return chunk._replace(state=state, metrics=metrics, measured=measured)


def _take(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[i], tree)

"""Runs an experiment in a folder, or several seeds of one as one program.

Of several processes (``host.processes``) each runs all of this on its own part of the devices. All
side effects of a run are here, in ``trainer``, in ``host`` and in ``experiments``.

Several seeds of one config, or several values of a number of it, can run as one program
(``run_seeds``, ``run_values``): the same chunk, mapped over states, keys and numbers with ``vmap``.
Each has its folder, as if it had run alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zo_fl import __version__, experiment
from zo_fl import config as configs
from zo_fl.config import warm_starts
from zo_fl.data import summary as label_summary
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import Dataset
from zo_fl.experiment import Experiment
from zo_fl.host import devices, lock, processes, workdir
from zo_fl.host.provenance import provenance
from zo_fl.host.signals import deferred_signals
from zo_fl.host.stopwatch import Stopwatch
from zo_fl.trainer import OnRound, Own, Trainer


def run(
    config: str | Path | ConfigDict | Mapping[str, Any],
    path: str | Path,
    *,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    changes: Mapping[str, Any] | None = None,
    on_round: OnRound | None = None,
    warm_start: str | Path | None = None,
    shared: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs or resumes an experiment in a folder, and returns its summary.

    Args:
      config: the name of a config (``"quickstart"``), a file's path, or a config; fields that it
        does not have are the defaults.
      path: the run's folder. An unfinished run in it is resumed, a finished one only reported.
      dataset: from ``zo_fl.dataset``, instead of the one that the config names.
      model: any Linen module ``(x, train, mask) -> logits`` (it may leave out ``mask``, or both),
        instead of the one that the config names. Its last layer is the submodule ``head``, or what
        its attribute ``last_layer`` names.
      changes: fields of the config, dotted: ``{"zo.num_directions": 9}``.
      on_round: called with each row of ``metrics.jsonl``, in order, as it is written.
      warm_start: folder of a finished run of the same data, model, seed and settings whose phases
        are the first of this one's: a new run starts after them instead of repeating them, and ends
        as if it had. A run that has begun goes on from its own checkpoints.
      shared: folder in which runs leave features for each other, where a method looks at a model
        that it does not change: they are computed once, also those that it is evaluated on. Up to
        five files, the largest as the training set's features in float32.
      quiet: no progress output.

    Returns:
      The content of ``summary.json``.

    Raises:
      ConfigError: bad config or folder, or another process runs in it; nothing was written.
      Interrupted: SIGINT, SIGTERM or SIGHUP; the run is saved and can be resumed.
      StorageError: the folder cannot be written, or is full; what was there stays, and once there
        is space the same call goes on.
    """
    resolved = _resolve(config, changes)
    donor = None if warm_start is None else Path(warm_start)
    own = Own(dataset, model, on_round, None if shared is None else Path(shared))
    (summary,) = _run([resolved], [Path(path)], own, donor, quiet)
    return summary


def run_seeds(
    config: str | Path | ConfigDict | Mapping[str, Any],
    path: str | Path,
    num_seeds: int,
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Runs ``num_seeds`` seeds of a config as one program, and returns their summaries.

    Seed i is ``config["seed"] + i``; the partition is the config's for all of them. Each has a
    folder ``path/SEED`` as ``run`` would leave it, equal up to the rounding of batched arithmetic.
    For small models: all states are on the device at once, and convolutions become grouped ones.

    Args:
      config: as for ``run``.
      path: folder of the folders.
      num_seeds: at least 1.
      quiet: no progress output.

    Raises:
      ConfigError: as for ``run``, or some of the folders are further than others.
      Interrupted: as for ``run``.
    """
    if num_seeds < 1:
        raise ConfigError(f"{num_seeds} seeds asked for; allowed: 1 or more; change --vmap_seeds")
    first = _resolve(config, None)
    resolved = [_resolve(first, {"seed": first["seed"] + i}) for i in range(num_seeds)]
    return run_together(resolved, [Path(path) / str(one["seed"]) for one in resolved], quiet=quiet)


def run_values(
    config: str | Path | ConfigDict | Mapping[str, Any],
    path: str | Path,
    field: str,
    values: Sequence[float],
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Runs a config with several values of a number as one program, and returns their summaries.

    Each has a folder ``path/VALUE`` as ``run`` would leave it, equal up to the rounding of batched
    arithmetic. As with seeds, small models gain most, and those of a GPU that one run leaves idle.

    Args:
      config: as for ``run``.
      path: folder of the folders.
      field: dotted, such as ``zo.lr``: one that may vary (``Field.varies``).
      values: of the field, no two alike.
      quiet: no progress output.

    Raises:
      ConfigError: as for ``run``, a field that may not vary, or some folders are further than
        others.
      Interrupted: as for ``run``.
    """
    first = _resolve(config, None)
    resolved = [_resolve(first, {field: value}) for value in values]
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
      configs_: as for ``run``.
      paths: the folder of each.
      warm_start: as for ``run``; of all of them.
      quiet: no progress output.

    Returns:
      The content of each one's ``summary.json``. Their folders have no ledger: no replays.

    Raises:
      ConfigError: as for ``run_values``.
      Interrupted: as for ``run``.
    """
    resolved = [_resolve(one, None) for one in configs_]
    donor = None if warm_start is None else Path(warm_start)
    return _run(resolved, [Path(path) for path in paths], Own(), donor, quiet)


def _resolve(config, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    made = configs.load(config) if isinstance(config, str | Path) else config
    resolved = configs.resolve(made)
    return configs.resolve(configs.changed(resolved, changes)) if changes else resolved


def _run(
    resolved: Sequence[dict[str, Any]],
    paths: Sequence[Path],
    own: Own,
    donor: Path | None,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Returns the summaries of runs that differ in their seed and in fields that may vary."""
    devices.prepare()
    configs.numbers_that_differ(resolved)
    if own.dataset is not None:
        for config in resolved:
            config["data"]["name"] = own.dataset.name
            if own.dataset.client_indices is not None:
                config["data"]["num_clients"] = len(own.dataset.client_indices)
    processes.check_same([resolved, str(donor)], "configs or warm starts")
    finished = _finished(resolved, paths, own)
    if all(finished):
        return [one for one in finished if one is not None]
    clock = Stopwatch()
    with processes.agreed():
        built = _build(_left(resolved, finished), own, donor)
    with ExitStack() as stack:
        with processes.agreed():
            if processes.is_first():
                for path in paths:
                    stack.enter_context(lock.owned(path))
        # Another process may have done some of it, or all, in the meantime.
        before, finished = finished, _finished(resolved, paths, own)
        left = _left(resolved, finished)
        if left:
            if len(left) < len(_left(resolved, before)):
                built = _build(left, own, donor)
            new = iter(_train(built, left, _left(paths, finished), clock, own, donor, quiet))
            finished = [next(new) if one is None else one for one in finished]
        return [one for one in finished if one is not None]


def _left(of_runs: Sequence[Any], finished: Sequence[dict[str, Any] | None]) -> list[Any]:
    """Returns what belongs to the runs that are not finished."""
    return [one for one, summary in zip(of_runs, finished, strict=True) if summary is None]


def _finished(
    resolved: Sequence[Mapping[str, Any]], paths: Sequence[Path], own: Own
) -> list[dict[str, Any] | None]:
    """Returns the summaries of what is finished, of runs whose folders are checked."""
    with processes.agreed():
        for config, path in zip(resolved, paths, strict=True):
            workdir.check(path, configs.identity, config, _name(own.model))
        seen = [workdir.finished(path) for path in paths]
    # A shared file system may show some processes less than others.
    return [None if processes.any_of(one is None) else one for one in seen]


def _train(
    built: Experiment,
    resolved: Sequence[dict[str, Any]],
    paths: Sequence[Path],
    clock: Stopwatch,
    own: Own,
    donor: Path | None,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Trains in folders that this process owns, and returns the summaries."""
    made_by = provenance(__version__)
    with processes.agreed():
        if processes.is_first():
            for config, path in zip(resolved, paths, strict=True):
                made = {"config": config, "model": _name(own.model), "provenance": made_by}
                workdir.create(path, made, built.federation.summary)
    with processes.agreed():
        for path in paths:
            workdir.wait_until_seen(path)
    quiet = quiet or not processes.is_first()
    if not quiet:
        print(label_summary.format_summary(built.federation.summary), flush=True)
    with deferred_signals() as interrupted:
        trainer = Trainer(built, resolved, paths, clock, quiet, interrupted, own, made_by)
        if donor is not None:
            trainer.adopt(donor)
        return trainer.train()


def _build(resolved: Sequence[Mapping], own: Own, donor: Path | None) -> Experiment:
    """Returns the experiment of runs side by side, all of it checked."""
    if donor is not None:
        for config in resolved:
            warm_starts.check(config, donor)
    if own.shared is not None and processes.several():
        raise ConfigError("features are shared by runs of one process each; leave out --shared")
    built = experiment.build(resolved[0], own.dataset, own.model)
    if built.engine.streamed and len(resolved) > 1:
        raise ConfigError(
            "runs side by side draw different cohorts, so their data cannot be streamed; set "
            "config.run.data to 'device', or leave out --vmap_seeds and --vmap_values"
        )
    checked = [phase.name for phase in built.phases if phase.check is not None]
    if checked and len(resolved) > 1:
        raise ConfigError(
            f"{checked[0]} ends when it has done what it can, at another round for each of several "
            "runs; let it have all its rounds (check_every=0, or stop='fixed'), or leave out "
            "--vmap_seeds and --vmap_values"
        )
    return built


def _name(model: nn.Module | None) -> str | None:
    """Returns what tells a user's own model from another one: its class and its attributes."""
    return None if model is None else " ".join(repr(model).split())

"""Runs an experiment in a folder; ``run_many`` runs several as one program.

    config -> experiment -> compiled -> loop.rounds -> rows, ledger, checkpoints -> summary

Of several processes (``host.processes``) each runs all of this on its own part of the devices.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zo_fl import __version__, experiment, loop, own_model, saved_model
from zo_fl import config as configs
from zo_fl.compiled import Compiled
from zo_fl.config import warm_starts
from zo_fl.data import federated
from zo_fl.data.partition import format_summary
from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Dataset
from zo_fl.experiment import Experiment
from zo_fl.host import devices, files, folder, processes
from zo_fl.host.folder import RunFolder
from zo_fl.host.schedule import Position
from zo_fl.host.screen import Progress, Stopwatch
from zo_fl.host.signals import deferred_signals
from zo_fl.loop import Chunk

Config = dict[str, Any]
Summary = dict[str, Any]
OnRound = Callable[[dict[str, Any]], object]


class Interrupted(Exception):
    """The user asked to stop; everything so far is saved."""


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
) -> Summary:
    """Runs or resumes an experiment in a folder, and returns its summary.

    Args:
      config: the name of a config (``"quickstart"``), a file's path, or a config; fields that it
        does not have are the defaults.
      path: the run's folder. An unfinished run in it is resumed, a finished one only reported.
      dataset: from ``zo_fl.dataset``, instead of the one that the config names.
      model: any Linen module ``(x, train, mask) -> logits`` (it may leave out ``mask``, or both),
        instead of the one that the config names. Its last layer is the submodule ``head``, or the
        one that its attribute ``last_layer`` names.
      changes: fields of the config, dotted: ``{"zo.num_directions": 9}``.
      on_round: called with each row of ``metrics.jsonl``, in order, as it is written. A run that
        resumes does the rounds since its last checkpoint again, and reports them again.
      warm_start: folder of a finished run of the same data, model, seed and settings whose phases
        are the first of this one's: a new run starts after them, and ends as if it had done them. A
        run that has begun goes on from its own checkpoints.
      shared: folder in which runs leave features for each other, where a method does not change the
        model that makes them. Up to five files, the largest as the training set's in float32.
      quiet: no progress output.

    Returns:
      The content of ``summary.json``.

    Raises:
      ConfigError: bad config or folder, or another process runs in it; nothing was written.
      Interrupted: SIGINT, SIGTERM or SIGHUP; the run is saved and can be resumed.
      StorageError: the folder cannot be written, or is full; what was there stays, and once there
        is space the same call goes on.
    """
    if not isinstance(dataset, Dataset | None):
        raise ConfigError(f"dataset is a {type(dataset).__name__}; allowed: that of zo_fl.dataset")
    if on_round is not None and not callable(on_round):
        raise ConfigError(f"on_round is a {type(on_round).__name__}; allowed: a function of a row")
    devices.begin()
    path, resolved = files.path_of(path), resolve(config, changes)
    donor = None if warm_start is None else files.path_of(warm_start)
    if dataset is not None:
        resolved["data"]["name"] = dataset.name
        if dataset.client_indices is not None:
            resolved["data"]["num_clients"] = len(dataset.client_indices)
    processes.check_same([resolved, str(donor)], "configs or warm starts")
    if shared is not None and processes.several():
        raise ConfigError("--shared is for runs of one process each; leave it out")
    said = None
    if model is not None:
        data = dataset or federated.load(**configs.plain(resolved)["data"]).dataset
        said = own_model.identity(model, data)
    summary = finished(resolved, path, said)
    if summary is not None:
        return summary
    clock = Stopwatch()
    with processes.agreed():
        if donor is not None:
            warm_starts.check(resolved, donor)
        built = experiment.build(resolved, dataset, model)
    with owned([path]):
        # Another process may have finished it in the meantime.
        summary = finished(resolved, path, said)
        if summary is not None:
            return summary
        place = None if shared is None else files.path_of(shared)
        runs = {path: resolved}
        (summary,) = execute(built, runs, clock, donor, (model, said), place, on_round, quiet=quiet)
        return summary


def resolve(config: Any, changes: Mapping[str, Any] | None = None) -> Config:
    """Returns a config as plain nested dicts, every field of it checked; arguments as ``run``'s."""
    made = configs.load(config) if isinstance(config, str | Path) else config
    resolved = configs.resolve(made)
    return configs.resolve(configs.changed(resolved, changes)) if changes else resolved


def finished(resolved: Config, path: Path, said: str | None) -> Summary | None:
    """Checks a run's folder, and returns the run's summary, None if there are rounds to do.

    ``said`` is the identity of the user's own model, None without one.
    """
    with processes.agreed():
        earlier = folder.check(path, warm_starts.differences, resolved, said)
        summary = folder.finished(path)
        if summary is not None and earlier and warm_starts.is_longer(earlier, resolved):
            summary = None if summary["diverged_round"] is None else summary
    # A shared file system may show some processes less than others.
    return None if processes.any_of(summary is None) else summary


def owned(paths: Sequence[Path]) -> ExitStack:
    """Returns a context in which this process alone may run in some folders."""
    stack = ExitStack()
    with processes.agreed():
        if processes.is_first():
            for path in paths:
                stack.enter_context(files.owned(path))
    return stack


def execute(
    built: Experiment,
    runs: Mapping[Path, Config],
    clock: Stopwatch,
    donor: Path | None = None,
    own: tuple[nn.Module | None, str | None] = (None, None),
    shared: Path | None = None,
    on_round: OnRound | None = None,
    quiet: bool = False,
) -> list[Summary]:
    """Runs or resumes a run, or several as one program; returns their summaries, raises as ``run``.

    Args:
      built: the experiment of the first config.
      runs: folder, owned by this process -> config, resolved.
      clock: started with the command.
      donor: folder of a finished run that they start after, which ``warm_starts`` checked.
      own: the user's own model and its identity.
      shared: as for ``run``, as is the rest.
    """
    quiet = quiet or not processes.is_first()
    options = next(iter(runs.values()))["run"]
    made_by = _create(built, runs, own[1])
    if not quiet:
        print(format_summary(built.federation.summary), flush=True)
    compiled = Compiled(built, options, shared, tuple(runs.values()))
    chosen = compiled.chosen()
    folders = [RunFolder(path, clock, title(one), chosen) for path, one in runs.items()]
    alive, summaries = dict(enumerate(folders)), {}
    with deferred_signals() as interrupted:
        position, state = _resume(compiled, folders, donor)
        schedule = compiled.planned.ended(position.ended)
        screen = Progress(schedule, position.done, quiet)
        with ExitStack() as stack:
            for run_folder in folders:
                run_folder.open(position.done, made_by)
                stack.callback(run_folder.close)
            stack.enter_context(screen)
            for chunk in loop.rounds(compiled, state, position, clock, screen):
                state, schedule, done = chunk.state, chunk.schedule, chunk.position.done
                _record(compiled, chunk, alive, screen, on_round)
                for i in [i for i, one in alive.items() if one.record.divergence is not None]:
                    # Now: it will not be resumed with the others.
                    summaries[i] = alive.pop(i).finish(schedule, done)
                if not alive:
                    break
                stops = processes.any_of(interrupted())
                if stops or done % options["checkpoint_every"] == 0 or done == chunk.phase.end:
                    for i, run_folder in alive.items():
                        run_folder.save(compiled.take(state, i), chunk.position, schedule)
                if stops:
                    raise Interrupted(f"stopped after round {done} of {schedule.end}")
        if alive:
            trained = compiled.model_of(schedule.phases[-1].phase.model, state)
            for i, run_folder in alive.items():
                with clock.during("saving"):
                    ended = compiled.take(trained, i)
                    saved_model.save(run_folder.path, ended, built.federation.dataset, own[0])
                summaries[i] = run_folder.finish(schedule, schedule.end)
    return [summaries[i] for i in range(len(folders))]


def _create(built: Experiment, runs: Mapping[Path, Config], said: str | None) -> dict[str, Any]:
    """Makes the folders of runs, and returns the provenance."""
    made_by = devices.provenance(__version__)
    with processes.agreed():
        if processes.is_first():
            for path, resolved in runs.items():
                made = {"config": resolved, "model": said, "provenance": made_by}
                folder.create(path, made, built.federation.summary)
    with processes.agreed():
        for path in runs:
            folder.wait_until_seen(path)
    return made_by


def _resume(
    compiled: Compiled, folders: Sequence[RunFolder], donor: Path | None
) -> tuple[Position, ServerState]:
    """Returns the latest position that all runs have saved, or the start, and the state there."""

    def like(i: int, at: Position) -> ServerState:
        return compiled.take(loop.first_state(compiled, at), i)

    for i, run_folder in enumerate(folders):
        if donor is not None:
            run_folder.adopt(donor, compiled.planned, functools.partial(like, i))
    while (position := min(run_folder.newest() for run_folder in folders)).done:
        if any(position.done not in one.checkpoints.rounds() for one in folders):
            raise ConfigError(
                f"runs side by side: {folders[0].path} and others have no checkpoint of the same "
                "round any more; finish each alone, or start again with another --workdir"
            )
        planned = compiled.planned.ended(position.ended)
        saved = [
            one.restore(position.done, like(i, position), planned) for i, one in enumerate(folders)
        ]
        states = [state for state in saved if state is not None]
        if len(states) == len(folders):
            return position, compiled.stack(states)
    return position, loop.first_state(compiled, position)


def _record(
    compiled: Compiled,
    chunk: Chunk,
    folders: Mapping[int, RunFolder],
    screen: Progress,
    on_round: OnRound | None,
) -> None:
    """Writes and shows a chunk of rounds of some runs, by their number."""
    each, written = chunk.seconds / len(chunk.rounds), []
    for i, run_folder in folders.items():
        metrics, measured = compiled.take((chunk.metrics, chunk.measured), i)
        measured = {name: float(value) for name, value in measured.items()}
        record = run_folder.record
        rows = record.rows(chunk.schedule, chunk.phase, chunk.rounds, metrics, measured, each)
        run_folder.write(rows, chunk.sent)
        written.append(rows)
        for text in record.news():
            screen.message(f"warning: {text}")
    if chunk.position.ended:
        screen.plan(chunk.schedule)
    images = chunk.phase.bill()[0].forward_passes * len(chunk.rounds)
    screen.update(written[0], round(images), chunk.seconds)
    if on_round is not None:
        for row in itertools.chain(*written):
            on_round(dict(row))  # a copy: what becomes of it there is no business of the run


def title(resolved: Config) -> str:
    """Returns a run's title in pictures."""
    return (
        f"{resolved['algorithm']}, {resolved['data']['name']}, {resolved['model']['name']}, "
        f"seed {resolved['seed']}"
    )

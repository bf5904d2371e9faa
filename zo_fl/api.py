"""Runs an experiment in a folder; ``run_many`` runs several as one program.

    config -> experiment -> compiled -> loop.rounds -> rows, ledger, checkpoints -> summary

Of several processes (``host.processes``) each runs all of this on its own part of the devices.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zo_fl import __version__, experiment, loop, saved_model
from zo_fl import config as configs
from zo_fl.compiled import Compiled
from zo_fl.config import warm_starts
from zo_fl.data.partition import format_summary
from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Dataset
from zo_fl.experiment import Experiment
from zo_fl.host import checkpoint, devices, files, folder, processes
from zo_fl.host.folder import Position, RunFolder, position_of
from zo_fl.host.screen import Planned, Progress, Stopwatch
from zo_fl.host.signals import deferred_signals
from zo_fl.loop import Chunk

Config = dict[str, Any]
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
    devices.prepare()
    path, resolved = Path(path), resolve(config, changes)
    donor = None if warm_start is None else Path(warm_start)
    if dataset is not None:
        resolved["data"]["name"] = dataset.name
        if dataset.client_indices is not None:
            resolved["data"]["num_clients"] = len(dataset.client_indices)
    processes.check_same([resolved, str(donor)], "configs or warm starts")
    if shared is not None and processes.several():
        raise ConfigError("--shared is for runs of one process each; leave it out")
    summary = finished(resolved, path, model)
    if summary is not None:
        return summary
    clock = Stopwatch()
    with processes.agreed():
        if donor is not None:
            warm_starts.check(resolved, donor)
        built = experiment.build(resolved, dataset, model)
    with owned([path]):
        # Another process may have finished it in the meantime.
        summary = finished(resolved, path, model)
        if summary is not None:
            return summary
        made_by = begin(built, resolved, path, model, quiet)
        compiled = Compiled(built, resolved["run"], None if shared is None else Path(shared))
        run_folder = RunFolder(path, clock)
        with deferred_signals() as interrupted:
            if donor is not None:
                adopt(compiled, run_folder, donor, lambda at: loop.first_state(compiled, at))
            position, state = resume(compiled, run_folder)
            screen = Progress(planned(compiled), position.done, quiet=is_quiet(quiet))
            chunks = loop.rounds(compiled, state, position, resolved["run"], clock, screen)
            told = on_round or (lambda row: None)
            run_folder.open(position.done, made_by)
            with closing(run_folder), screen:
                last = follow(chunks, run_folder, resolved["run"], screen, interrupted, told)
            if last is not None:
                position, state = last.position, last.state
            schedule = compiled.planned.ended(position.ended)
            if run_folder.record.divergence is None:
                trained = compiled.model_of(schedule.phases[-1].phase.model, state)
                with clock.during("saving"):
                    saved_model.save(path, trained, built.federation.dataset, model)
            return run_folder.finish(title(resolved), schedule, position.done)


def resolve(config: Any, changes: Mapping[str, Any] | None = None) -> Config:
    """Returns a config as plain nested dicts, every field of it checked; arguments as ``run``'s."""
    made = configs.load(config) if isinstance(config, str | Path) else config
    resolved = configs.resolve(made)
    return configs.resolve(configs.changed(resolved, changes)) if changes else resolved


def finished(resolved: Config, path: Path, model: nn.Module | None) -> dict[str, Any] | None:
    """Returns the summary of a finished run, None if it is not; the folder is checked."""
    with processes.agreed():
        folder.check(path, configs.identity, resolved, in_words(model))
        summary = folder.finished(path)
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


def begin(
    built: Experiment, resolved: Config, path: Path, model: nn.Module | None, quiet: bool
) -> dict[str, Any]:
    """Makes a run's folder, prints who holds what, and returns the provenance."""
    made_by = devices.provenance(__version__)
    with processes.agreed():
        if processes.is_first():
            made = {"config": resolved, "model": in_words(model), "provenance": made_by}
            folder.create(path, made, built.federation.summary)
    with processes.agreed():
        folder.wait_until_seen(path)
    if not is_quiet(quiet):
        print(format_summary(built.federation.summary), flush=True)
    return made_by


def adopt(
    compiled: Compiled,
    run_folder: RunFolder,
    donor: Path,
    like: Callable[[Position], ServerState],
) -> None:
    """Starts a run that has not begun after a finished warm-up, which ``warm_starts`` checked.

    Args:
      compiled: the run.
      run_folder: its folder.
      donor: the warm-up's folder.
      like: a position -> a state with the shapes of the one there.

    Raises:
      ConfigError: the warm-up's checkpoint is missing, damaged, or of another structure.
    """
    if run_folder.checkpoints.latest_round() is not None:
        return
    saved = checkpoint.Checkpoints(donor, read_only=True)
    done = saved.latest_round()
    if done is None:
        raise ConfigError(f"{donor} has no checkpoint any more; change --warm_start")
    try:
        position = position_of(done, saved.progress(done))
        state, progress = saved.restore(done, like(position))
    except checkpoint.Damaged as damaged:
        raise ConfigError(f"{damaged}; change --warm_start") from None
    schedule = compiled.planned.ended(position.ended)
    run_folder.adopt(donor, state, progress, position, schedule)


def resume(compiled: Compiled, run_folder: RunFolder) -> tuple[Position, ServerState]:
    """Returns the newest position whose state can be restored, and the state; or the start."""
    while (position := run_folder.newest()).done:
        state = run_folder.restore(position.done, loop.first_state(compiled, position))
        if state is not None:
            return position, state
    return position, loop.first_state(compiled, position)


def follow(
    chunks: Iterable[Chunk],
    run_folder: RunFolder,
    options: Mapping[str, Any],
    screen: Progress,
    interrupted: Callable[[], bool],
    on_round: OnRound,
) -> Chunk | None:
    """Logs, shows and saves what a run does, until it ends or diverges; returns the last chunk.

    Raises:
      Interrupted: ``interrupted`` said so; the run is saved.
    """
    last = None
    for last in chunks:
        rows = write(last, run_folder)
        show(last, rows, [run_folder], screen)
        for row in rows:
            on_round(row)
        if run_folder.record.divergence is not None:
            return last
        done, stops = last.position.done, processes.any_of(interrupted())
        if stops or done % options["checkpoint_every"] == 0 or done == last.phase.end:
            run_folder.save(last.state, last.position, last.schedule)
        if stops:
            raise Interrupted(f"stopped after round {done} of {last.schedule.end}")
    return last


def write(chunk: Chunk, run_folder: RunFolder) -> list[dict[str, Any]]:
    """Writes the rows of a chunk, and what was sent in it; returns the rows."""
    measured = {name: float(value) for name, value in chunk.measured.items()}
    each = chunk.seconds / len(chunk.rounds)
    record, phase = run_folder.record, chunk.phase
    rows = record.rows(chunk.schedule, phase, chunk.rounds, chunk.metrics, measured, each)
    run_folder.write(rows, chunk.sent, phase.phase.name)
    return rows


def show(
    chunk: Chunk, rows: list[dict[str, Any]], folders: Sequence[RunFolder], screen: Progress
) -> None:
    """Shows how far a run is, by some rows, and the warnings of all runs of its program."""
    for run_folder in folders:
        for text in run_folder.record.news():
            screen.message(f"warning: {text}")
    if chunk.position.ended:
        screen.plan(_planned(chunk.schedule.phases))
    images = chunk.phase.round.forward_passes * len(rows)
    screen.update(rows, round(images), chunk.seconds)


def planned(compiled: Compiled) -> list[Planned]:
    """Returns the phases of a run, for the time that is left."""
    return _planned(compiled.planned.phases)


def _planned(phases) -> list[Planned]:
    return [Planned(p.phase.name, p.end - p.start, p.round.pass_equivalents) for p in phases]


def title(resolved: Config) -> str:
    """Returns a run's title in pictures."""
    return (
        f"{resolved['algorithm']}, {resolved['data']['name']}, {resolved['model']['name']}, "
        f"seed {resolved['seed']}"
    )


def is_quiet(quiet: bool) -> bool:
    """Returns whether this process prints nothing."""
    return quiet or not processes.is_first()


def in_words(model: nn.Module | None) -> str | None:
    """Returns a user's own model in words, its class and its attributes; None without one."""
    return None if model is None else " ".join(repr(model).split())

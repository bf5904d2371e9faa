"""Runs an experiment: phases, chunks of rounds, evaluation, logs, checkpoints.

Of several processes (``processes``) each runs all of this on its own part of the devices.

All side effects of a run are here, in ``run_folder`` and in ``experiments``. A chunk of rounds is
one jitted program whose length is an argument, so that each phase compiles once whatever the
cadence of evaluation. What a chunk leaves behind depends on the round alone, not on where a run was
stopped: a resumed run ends bit-identical to one that never stopped.

Several seeds of one config can run as one program (``run_seeds``): the same chunk, mapped over
states and keys with ``vmap``. Each seed has its folder, as if it had run alone.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from zo_fl import config as configs
from zo_fl import experiment, trained, warm_starts
from zo_fl.core import keys
from zo_fl.core.chunk import Lanes, make_chunk
from zo_fl.core.errors import ConfigError
from zo_fl.core.round import make_algorithm
from zo_fl.core.types import Dataset, FederatedData, PyTree, ServerState
from zo_fl.data import summary as label_summary
from zo_fl.experiment import Experiment
from zo_fl.host import evaluate, processes, streaming, workdir
from zo_fl.host.progress import Progress, mean_rows
from zo_fl.host.provenance import provenance
from zo_fl.host.run_folder import RunFolder
from zo_fl.host.schedule import Stretch, chunks, make_schedule
from zo_fl.host.signals import deferred_signals

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
      quiet: no progress output.

    Returns:
      The content of ``summary.json``.

    Raises:
      ConfigError: bad config or folder; nothing was written.
      Interrupted: SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    resolved = _resolve(config, changes)
    donor = None if warm_start is None else Path(warm_start)
    own = _Own(dataset, model, on_round)
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
    paths = [Path(path) / str(one["seed"]) for one in resolved]
    return _run(resolved, paths, _Own(), None, quiet)


class _Own(NamedTuple):
    """What a user brings along; see ``run``."""

    dataset: Dataset | None = None
    model: nn.Module | None = None
    on_round: OnRound | None = None


def _resolve(config, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    made = configs.load(config) if isinstance(config, str | Path) else config
    resolved = configs.resolve(made)
    return configs.resolve(configs.changed(resolved, changes)) if changes else resolved


def _run(
    resolved: Sequence[dict[str, Any]],
    paths: Sequence[Path],
    own: _Own,
    donor: Path | None,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Returns the summaries of runs that differ in their seed alone."""
    if own.dataset is not None:
        for config in resolved:
            config["data"]["name"] = own.dataset.name
            if own.dataset.client_indices is not None:
                config["data"]["num_clients"] = len(own.dataset.client_indices)
    processes.check_same([resolved, str(donor)], "configs or warm starts")
    with processes.agreed():
        for config, path in zip(resolved, paths, strict=True):
            workdir.check(path, configs.identity, config, _name(own.model))
    finished = [workdir.read_json(path / "summary.json") for path in paths]
    if not processes.any_of(not all(finished)):
        return finished
    began = time.perf_counter()
    with processes.agreed():
        built = _build(resolved, own, donor)
        if processes.is_first():
            for config, path in zip(resolved, paths, strict=True):
                made = {"config": config, "model": _name(own.model), "provenance": provenance()}
                workdir.create(path, made, built.federation.summary)
    with processes.agreed():
        for path in paths:
            workdir.wait_until_seen(path)
    quiet = quiet or not processes.is_first()
    if not quiet:
        print(label_summary.format_summary(built.federation.summary), flush=True)
    with deferred_signals() as interrupted:
        trainer = _Trainer(built, resolved, paths, began, quiet, interrupted, own)
        if donor is not None:
            trainer.adopt(donor)
        trainer.train()
        return [
            folder.finish(_title(one))
            for folder, one in zip(trainer.folders, resolved, strict=True)
        ]


def _build(resolved: Sequence[Mapping], own: _Own, donor: Path | None) -> Experiment:
    """Returns the experiment of runs that differ in their seed alone, all of it checked."""
    if donor is not None:
        warm_starts.check(resolved[0], donor)
    built = experiment.build(resolved[0], own.dataset, own.model)
    if built.engine.streamed and len(resolved) > 1:
        raise ConfigError(
            "the seeds of --vmap_seeds draw different cohorts, so their data cannot be streamed; "
            "set config.run.data to 'device', or leave out --vmap_seeds"
        )
    return built


def _name(model: nn.Module | None) -> str | None:
    """Returns what tells a user's own model from another one: its class and its attributes."""
    return None if model is None else " ".join(repr(model).split())


class _Trainer:
    """The device's side of one run, or of several side by side (``Lanes``).

    Args:
      built: the experiment.
      configs: one a run; they differ in their seed alone.
      paths: the runs' folders.
      began: ``time.perf_counter()`` when the command began.
      quiet: no progress output.
      stop: tells whether the user asked to stop.
      own: what the user brought along.
    """

    def __init__(
        self,
        built: Experiment,
        configs: Sequence[Mapping[str, Any]],
        paths: Sequence[Path],
        began: float,
        quiet: bool,
        stop: Callable[[], bool],
        own: _Own,
    ):
        self.built, self.quiet, self.interrupted, self.own = built, quiet, stop, own
        self.options = configs[0]["run"]
        self.lanes = Lanes(len(configs))
        self.replicated = NamedSharding(built.mesh, P())

        def run_keys():
            return self.lanes.stack([keys.run_key(config["seed"]) for config in configs])

        # Made under jit: of several processes, none can send an array to another's devices.
        self.run_key = jax.jit(run_keys, out_shardings=self.replicated)()
        init = self.lanes.lift(lambda key: built.task.init(keys.stream(key, "init")))
        self.initial = jax.jit(init, out_shardings=self.replicated)(self.run_key)
        params, model_state = jax.eval_shape(built.task.init, built.run_key)
        self.schedule = make_schedule(built.phases, params, model_state, built.federation.clients)
        self.folders = [RunFolder(path, self.schedule, began) for path in paths]
        self.models = {
            stretch.start: jax.jit(self.lanes.lift(stretch.phase.evaluated, (0, None)))
            for stretch in self.schedule.stretches
        }
        precise = built.task.with_precision(self.options["eval_precision"])
        measure = evaluate.make_evaluate(precise, built.engine.compiler_options)
        self.evaluate = self.lanes.lift(measure, (0, 0, None))
        size = self.options["eval_batch_size"]
        self.sets = evaluate.make_sets(built.federation, size, built.mesh)

    def adopt(self, donor: Path) -> None:
        """Starts a run that has not begun after a finished warm-up."""
        (folder,) = self.folders
        folder.adopt(donor, lambda done: self._initial_state(self.schedule.stretch_of(done)))

    def train(self) -> None:
        """Runs all rounds not yet done, or until all seeds have diverged."""
        state, done = self._restore()
        with ExitStack() as stack:
            for folder in self.folders:
                folder.open(done)
                stack.callback(folder.close)
            self.bar = stack.enter_context(Progress(self.schedule.end, done, quiet=self.quiet))
            before = None
            for stretch in self.schedule.stretches:
                if before is not None and done == stretch.start:
                    params, model_state = self._model(before, state)
                    state = self._first_state(stretch, params, model_state, done)
                before = stretch
                if done >= stretch.end or not self._alive():
                    continue
                for done, state in self._rounds(stretch, state, done):  # noqa: B020
                    if processes.any_of(self.interrupted()) and self._alive():
                        self._save(state, done)
                        raise Interrupted(f"stopped after round {done} of {self.schedule.end}")
        self._save_models(self._model(self.schedule.stretches[-1], state))

    def _rounds(self, stretch: Stretch, state: ServerState, done: int) -> Iterator:
        """Yields ``(rounds done, state)`` after each chunk of a phase; stops after a bad loss."""
        cuts = chunks(done, stretch.end, self.options)
        feed = self._feed(stretch, cuts)
        data = next(feed)
        program = self._compile(stretch, state, data)
        for start, stop in cuts:
            began = time.perf_counter()
            state, metrics = program(state, data, self.run_key, np.int32(stop - start))
            data = next(feed, data)  # the next chunk's, while the devices compute this one
            metrics = jax.device_get(metrics)
            seconds = time.perf_counter() - began
            self._log(stretch, state, start, stop, metrics, seconds)
            if self._alive() and (
                stop % self.options["checkpoint_every"] == 0 or stop == stretch.end
            ):
                self._save(state, stop)
            yield stop, state
            if not self._alive():
                return

    def _feed(self, stretch: Stretch, cuts: Sequence[tuple[int, int]]) -> Iterator[FederatedData]:
        """Yields the data of each chunk of a phase."""
        if not self.built.engine.streamed:
            return itertools.repeat(self.built.data)
        built = self.built
        return streaming.stream(
            built.federation.clients, stretch.phase.groups, built.engine, built.run_key, cuts
        )

    def _compile(self, stretch: Stretch, state: ServerState, data: FederatedData):
        began = time.perf_counter()
        algorithm = make_algorithm(stretch.phase, self.built.engine)
        capacity, options = self.options["rounds_per_jit"], self.built.engine.compiler_options
        chunk = make_chunk(algorithm, capacity, self.lanes, options)
        program = chunk.lower(state, data, self.run_key, np.int32(1)).compile()
        seconds = time.perf_counter() - began
        self.bar.message(f"{stretch.phase.name}: compiled in {seconds:.1f} s")
        return program

    def _log(self, stretch: Stretch, state, done: int, stop: int, metrics, seconds: float) -> None:
        each = seconds / (stop - done)
        measured = {}
        if stop % self.options["eval_every"] == 0 or stop == stretch.end:
            model = self._model(stretch, state)
            for name, examples in self.sets.items():
                values = jax.device_get(self.evaluate(*model, examples))
                measured |= {f"{name}_{key}": value for key, value in values.items()}
        shown = []
        for i, folder in enumerate(self.folders):
            if folder.diverged_round is not None:
                continue
            rows = folder.rows(stretch, done, stop - done, self.lanes.take(metrics, i), each)
            rows[-1] |= {name: float(value) for name, value in self.lanes.take(measured, i).items()}
            folder.write(rows)
            shown.append(rows)
            if self.own.on_round is not None:
                for row in rows:
                    self.own.on_round(row)
        images = stretch.phase.forward_passes * (stop - done) * len(self.folders)
        self.bar.update(mean_rows(shown), round(images), seconds)

    def _model(self, stretch: Stretch, state: ServerState) -> tuple[PyTree, PyTree]:
        """Returns the parameters and statistics that a phase has arrived at."""
        data = None if self.built.engine.streamed else self.built.data
        return self.models[stretch.start](state, data)

    def _alive(self) -> list[RunFolder]:
        """Returns the runs that have not diverged."""
        return [folder for folder in self.folders if folder.diverged_round is None]

    def _initial_state(self, stretch: Stretch) -> ServerState:
        """Returns the first state of the run, as the phase of ``stretch`` would have it."""
        params, model_state = self.initial
        return self._first_state(stretch, params, model_state, 0)

    def _first_state(self, stretch: Stretch, params, model_state, done) -> ServerState:
        """Returns a phase's first state: the model goes on, the optimizer starts afresh."""
        init = self.lanes.lift(stretch.phase.init, (0, 0, None))
        return jax.jit(init, out_shardings=self.replicated)(params, model_state, np.int32(done))

    def _save(self, state: ServerState, done: int) -> None:
        for i, folder in enumerate(self.folders):
            if folder.diverged_round is None:
                folder.save(self.lanes.take(state, i), done)

    def _save_models(self, model: tuple[PyTree, PyTree]) -> None:
        """Saves what the runs that did not diverge have arrived at, for ``trained.load``."""
        dataset = self.built.federation.dataset
        for i, folder in enumerate(self.folders):
            if folder.diverged_round is None:
                params, model_state = self.lanes.take(model, i)
                trained.save(folder.path, params, model_state, dataset, self.own.model)

    def _restore(self) -> tuple[ServerState, int]:
        """Returns the latest state that all runs have saved, or the initial one, and its round."""
        saved = [folder.checkpoints.latest_round() for folder in self.folders]
        done = min((round_idx or 0 for round_idx in saved), default=0)
        stretch = self.schedule.stretch_of(max(done, 1))
        state = self._initial_state(stretch)
        if not done:
            return state, 0
        states = [
            folder.restore(done, self.lanes.take(state, i)) for i, folder in enumerate(self.folders)
        ]
        if self.lanes.count == 1:
            return states[0], done
        return jax.device_put(self.lanes.stack(states), self.replicated), done


def _title(config: Mapping[str, Any]) -> str:
    return (
        f"{config['algorithm']}, {config['data']['name']}, {config['model']['name']}, "
        f"seed {config['seed']}"
    )

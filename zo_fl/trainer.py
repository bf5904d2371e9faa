"""The loop of a run: phases, chunks of rounds, evaluation, logs, checkpoints.

A chunk of rounds is one jitted program whose length is an argument, so that each phase compiles
once whatever the cadence of evaluation. What a chunk leaves behind depends on the round alone, not
on where a run was stopped: a resumed run ends bit-identical to one that never stopped.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from zo_fl import trained
from zo_fl.core import keys
from zo_fl.core.chunk import Lanes, make_check, make_chunk
from zo_fl.core.engine import Engine
from zo_fl.core.phase import Phase
from zo_fl.core.round import make_algorithm
from zo_fl.core.types import Dataset, FederatedData, PyTree, ServerState
from zo_fl.experiment import Experiment
from zo_fl.host import evaluate, processes, rounding, streaming
from zo_fl.host.divergence import FAULTS
from zo_fl.host.keeping import Keeper
from zo_fl.host.progress import Planned, Progress, mean_rows
from zo_fl.host.run_folder import Ended, RunFolder, resume
from zo_fl.host.schedule import Stretch, chunks, make_schedule
from zo_fl.host.stopwatch import Stopwatch

OnRound = Callable[[dict[str, Any]], object]


class Interrupted(Exception):
    """The user asked to stop; everything so far is saved."""


class Own(NamedTuple):
    """What a user brings along; see ``train.run``."""

    dataset: Dataset | None = None
    model: nn.Module | None = None
    on_round: OnRound | None = None
    shared: Path | None = None


class Trainer:
    """The device's side of one run, or of several side by side (``Lanes``).

    Args:
      built: the experiment.
      configs: one a run; they differ in their seed alone.
      paths: the runs' folders.
      clock: counts since the run began.
      quiet: no progress output.
      stop: tells whether the user asked to stop.
      own: what the user brought along.
      made_by: versions and devices, see ``provenance``; noted where a resumed run has others.
    """

    def __init__(
        self,
        built: Experiment,
        configs: Sequence[Mapping[str, Any]],
        paths: Sequence[Path],
        clock: Stopwatch,
        quiet: bool,
        stop: Callable[[], bool],
        own: Own,
        made_by: Mapping[str, Any] | None = None,
    ):
        self.built, self.quiet, self.interrupted, self.own = built, quiet, stop, own
        self.options, self.made_by, self.clock = configs[0]["run"], made_by, clock
        self.lanes = Lanes(len(configs))
        self.replicated = built.engine.replicated

        def run_keys():
            return self.lanes.stack([keys.run_key(config["seed"]) for config in configs])

        # Made under jit: of several processes, none can send an array to another's devices.
        self.run_key = jax.jit(run_keys, out_shardings=self.replicated)()
        init = self.lanes.lift(lambda key: built.task.init(keys.stream(key, "init")))
        self.initial = jax.jit(init, out_shardings=self.replicated)(self.run_key)
        params, model_state = jax.eval_shape(built.task.init, built.run_key)
        self.planned = make_schedule(built.phases, params, model_state, self._clients_of)
        self.schedule = self.planned
        self.checks: dict[int, Any] = {}  # compiled, by the place of their phase
        self.folders = [RunFolder(path, self.schedule, clock) for path in paths]
        self.models = [
            jax.jit(self.lanes.lift(stretch.phase.evaluated, (0, None)))
            for stretch in self.schedule.stretches
        ]
        precise = built.task.with_precision(self.options["eval_precision"])
        measure = evaluate.make_evaluate(precise, built.engine.compiler_options)
        self.evaluate = self.lanes.lift(measure, (0, 0, None))
        size = self.options["eval_batch_size"]
        self.sets = evaluate.make_sets(built.federation, size, built.mesh)
        options = built.engine.compiler_options
        self.keeper = Keeper(built.task.head, own.shared, self.replicated, options)

    def _clients_of(self, phase: Phase) -> FederatedData:
        """Returns what the clients of a phase look at, on the host."""
        federation = self.built.federation
        return federation.validation if phase.on_validation else federation.clients

    def adopt(self, donor: Path) -> None:
        """Starts a run that has not begun after a finished warm-up."""
        (folder,) = self.folders

        def like(done: int, ended: Ended) -> ServerState:
            self._end(ended)
            return self.initial_state(self.schedule.stretch_of(done))

        folder.adopt(donor, like)

    def train(self) -> None:
        """Runs all rounds not yet done, or until all seeds have diverged."""
        state, done = self._restore()
        with ExitStack() as stack:
            for folder in self.folders:
                folder.open(done, self.made_by)
                stack.callback(folder.close)
            self.bar = stack.enter_context(Progress(self._planned(), done, quiet=self.quiet))
            before = None
            for place in range(len(self.schedule.stretches)):
                stretch = self.schedule.stretches[place]
                if before is not None and done == stretch.start:
                    params, model_state = self.model_of(before, state)
                    carried = state.strategy_state
                    state = self.first_state(stretch, params, model_state, done)
                    if stretch.phase.continues:
                        state = state._replace(strategy_state=carried)
                before = stretch
                if done >= stretch.end or not self._alive():
                    continue
                for done, state in self._rounds(place, state, done):  # noqa: B020
                    if processes.any_of(self.interrupted()) and self._alive():
                        self._save(state, done)
                        raise Interrupted(f"stopped after round {done} of {self.schedule.end}")
        self._save_models(self.model_of(self.schedule.stretches[-1], state))

    def _planned(self) -> list[Planned]:
        return [
            Planned(s.phase.name, s.end - s.start, s.phase.pass_equivalents)
            for s in self.schedule.stretches
        ]

    def _rounds(self, place: int, state: ServerState, done: int) -> Iterator:
        """Yields ``(rounds done, state)`` after each chunk of a phase; stops after a bad loss."""
        stretch = self.schedule.stretches[place]
        if done == stretch.start:
            self._warn(stretch.phase, state)
        cuts = chunks(stretch, done, self.options)
        feed = self._feed(stretch.phase, state, cuts)
        data = next(feed)
        program = self._compile(stretch, state, data)
        for start, stop in cuts:
            began = time.perf_counter()
            checked: dict[str, float] = {}
            with self.clock.during("rounds"):
                state, *measured = program(state, data, stop - start)
                data = next(feed, data)  # the next chunk's, while the devices compute this one
                metrics, *recorded = jax.device_get(measured)
            if recorded:
                self.folders[0].record(stretch.phase.name, start, stop - start, recorded[0])
            if stretch.is_checked(stop):
                state, checked, is_over = self._asked(stretch, state)
                if is_over and stop < stretch.end:
                    self._end([(place, stop)])
                    self.bar.plan(self._planned())
                    stretch = self.schedule.stretches[place]
            seconds = time.perf_counter() - began
            self._log(stretch, state, start, stop, metrics, checked, seconds)
            if self._alive() and (
                stop % self.options["checkpoint_every"] == 0 or stop == stretch.end
            ):
                self._save(state, stop)
            yield stop, state
            if not self._alive() or stop == stretch.end:
                return

    def _warn(self, phase: Phase, state: ServerState) -> None:
        """Warns where the precision of a phase ruins what its clients send."""
        options = self.built.engine.compiler_options
        for i, folder in enumerate(self.folders):
            lane = (
                self.lanes.take(state, i),
                self._clients_of(phase),
                self.lanes.take(self.run_key, i),
            )
            text = rounding.warning(phase, *lane, options)
            if text is not None:
                folder.standing.warn(text)
        self._show_news()

    def _show_news(self) -> None:
        for folder in self.folders:
            for text in folder.standing.news():
                self.bar.message(f"warning: {text}")

    def _asked(
        self, stretch: Stretch, state: ServerState
    ) -> tuple[ServerState, dict[str, float], bool]:
        """Returns the state after a check, what it measured, and whether the phase is over."""
        check = stretch.phase.check
        assert check is not None, "the phase has no checks"
        done = int(state.round_idx)
        data = next(self._feed(check.phase, state, [(done, done + 1)]))
        if stretch.place not in self.checks:
            program = make_check(check, self.built.engine)
            with self._compiling(check.phase):
                self.checks[stretch.place] = program.lower(state, data, self.run_key).compile()
        with self.clock.during("evaluating"):
            state, metrics, is_over = self.checks[stretch.place](state, data, self.run_key)
            measured = {
                f"check_{name}": float(value)
                for name, value in metrics.items()
                if name not in FAULTS
            }
            return state, measured, bool(is_over)

    def plan(self, ended: Ended) -> None:
        """Plans anew, with phases that ended early."""
        self.schedule = self.planned
        for folder in self.folders:
            folder.plan(self.planned)
        self._end(ended)

    def _end(self, ended: Ended) -> None:
        """Ends phases early, each after a round of what is then the run."""
        for place, done in ended:
            self.schedule = self.schedule.ended(place, done)
            for folder in self.folders:
                folder.ended(self.schedule, place, done)

    def _feed(
        self, phase: Phase, state: ServerState, cuts: Sequence[tuple[int, int]]
    ) -> Iterator[FederatedData]:
        """Yields the data of each chunk of a phase."""
        built, engine = self.built, self._engine_of(phase)
        data = built.data_of(phase)
        if engine.streamed:
            return streaming.stream(data, phase.groups, engine, built.run_key, cuts)
        if self.lanes.size == 1:
            data = self.keeper.data_of(phase, state, data)
        if engine != built.engine:
            data = jax.device_put(data, engine.replicated)
        return itertools.repeat(data)

    def _engine_of(self, phase: Phase) -> Engine:
        """Returns the layout of a phase's clients; of several runs side by side it is the run's."""
        return self.built.engine.of(phase.groups) if self.lanes.size == 1 else self.built.engine

    def _compile(self, stretch: Stretch, state: ServerState, data: FederatedData):
        """Returns a phase's chunk, compiled; its states lie as those of all phases."""
        engine, home = self._engine_of(stretch.phase), self.replicated
        algorithm, capacity = make_algorithm(stretch.phase, engine), self.options["rounds_per_jit"]
        recorded = home if stretch.phase.replays and self.lanes.size == 1 else None
        chunk = make_chunk(algorithm, capacity, self.lanes, engine.compiler_options, recorded)
        there = engine.replicated
        run_key = jax.device_put(self.run_key, there)
        with self._compiling(stretch.phase):
            like = jax.device_put(state, there)
            program = chunk.lower(like, data, run_key, np.int32(1)).compile()

        def run(state: ServerState, data: FederatedData, num_rounds: int):
            state = jax.device_put(state, there)
            state, *measured = program(state, data, run_key, np.int32(num_rounds))
            return jax.device_put(state, home), *measured

        return run

    @contextmanager
    def _compiling(self, phase: Phase) -> Iterator[None]:
        with self.clock.during("compiling"), self.bar.compiling(phase.name):
            yield

    def _log(
        self, stretch: Stretch, state, done: int, stop: int, metrics, checked, seconds: float
    ) -> None:
        each = seconds / (stop - done)
        measured = {}
        due = stop % self.options["eval_every"] == 0 or stop == stretch.end
        if due and self._is_worth_evaluating(stretch, stop):
            with self.clock.during("evaluating"):
                model = self.model_of(stretch, state)
                for name, examples in self.sets.items():
                    values = jax.device_get(self.evaluate(*model, examples))
                    measured |= {f"{name}_{key}": value for key, value in values.items()}
        shown = []
        for i, folder in enumerate(self.folders):
            if folder.standing.divergence is not None:
                continue
            mine = self.lanes.take(metrics, i)
            rows = folder.standing.rows(
                self.schedule, stretch, done, stop - done, mine, each, checked
            )
            rows[-1] |= {name: float(value) for name, value in self.lanes.take(measured, i).items()}
            folder.write(rows)
            shown.append(rows)
            if self.own.on_round is not None:
                for row in rows:
                    self.own.on_round(row)
        self._show_news()
        images = stretch.phase.forward_passes * (stop - done) * len(self.folders)
        self.bar.update(mean_rows(shown), round(images), seconds)

    def _is_worth_evaluating(self, stretch: Stretch, done: int) -> bool:
        """Returns whether a model is made for use, and not only for the next phase."""
        if done < self.schedule.end:
            return not stretch.phase.prepares
        # A run of what only prepares is where others start from.
        return not all(one.phase.prepares for one in self.schedule.stretches)

    def model_of(self, stretch: Stretch, state: ServerState) -> tuple[PyTree, PyTree]:
        """Returns the parameters and statistics that a phase has arrived at."""
        data = None if self.built.engine.streamed else self.built.data
        return self.models[stretch.place](state, data)

    def _alive(self) -> list[RunFolder]:
        """Returns the runs that have not diverged."""
        return [folder for folder in self.folders if folder.standing.divergence is None]

    def initial_state(self, stretch: Stretch) -> ServerState:
        """Returns the first state of the run, as the phase of ``stretch`` would have it."""
        params, model_state = self.initial
        return self.first_state(stretch, params, model_state, 0)

    def first_state(self, stretch: Stretch, params, model_state, done) -> ServerState:
        """Returns a phase's first state: the model goes on, the optimizer starts afresh."""
        init = self.lanes.lift(stretch.phase.init, (0, 0, None))
        return jax.jit(init, out_shardings=self.replicated)(params, model_state, np.int32(done))

    def _save(self, state: ServerState, done: int) -> None:
        with self.clock.during("saving"):
            for i, folder in enumerate(self.folders):
                if folder.standing.divergence is None:
                    folder.save(self.lanes.take(state, i), done)

    def _save_models(self, model: tuple[PyTree, PyTree]) -> None:
        """Saves what the runs that did not diverge have arrived at, for ``trained.load``."""
        dataset = self.built.federation.dataset
        with self.clock.during("saving"):
            for i, folder in enumerate(self.folders):
                if folder.standing.divergence is None:
                    params, model_state = self.lanes.take(model, i)
                    trained.save(folder.path, params, model_state, dataset, self.own.model)

    def _restore(self) -> tuple[ServerState, int]:
        """Returns the latest state that all runs have saved, or the initial one, and its round."""

        def like(done: int, ended: Ended) -> list[ServerState]:
            self.plan(ended)
            state = self.initial_state(self.schedule.stretch_of(done))
            return [self.lanes.take(state, i) for i in range(len(self.folders))]

        done, states = resume(self.folders, like)
        if not done:
            return self.initial_state(self.schedule.stretches[0]), 0
        if self.lanes.size == 1:
            return states[0], done
        return jax.device_put(self.lanes.stack(states), self.replicated), done

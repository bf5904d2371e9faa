"""The loop of a run: phases, chunks of rounds, evaluation, logs, checkpoints.

A chunk of rounds is one jitted program whose length is an argument, so that each phase compiles
once whatever the cadence of evaluation. What a chunk leaves behind depends on the round alone, not
on where a run was stopped: a resumed run ends bit-identical to one that never stopped.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from zo_fl import trained
from zo_fl.engine.phase import Phase
from zo_fl.engine.types import Dataset, PyTree, ServerState
from zo_fl.experiment import Experiment
from zo_fl.host import processes
from zo_fl.host.divergence import FAULTS
from zo_fl.host.progress import Planned, Progress, mean_rows
from zo_fl.host.run_folder import Ended, RunFolder, resume
from zo_fl.host.schedule import Stretch, chunks
from zo_fl.host.stopwatch import Stopwatch
from zo_fl.programs import Programs

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
    """The loop of one run, or of several side by side (``Lanes``).

    Args:
      built: the experiment.
      configs: one a run; they differ in their seed and in fields that may vary alone.
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
        self.programs = Programs(built, configs, own.shared)
        self.lanes, self.schedule = self.programs.lanes, self.programs.planned
        self.folders = [RunFolder(path, self.schedule, clock) for path in paths]
        self._titles = [_title(config) for config in configs]
        self._summaries: dict[int, dict[str, Any]] = {}  # of runs that have ended

    def adopt(self, donor: Path) -> None:
        """Starts runs that have not begun after a finished warm-up."""

        def like(done: int, ended: Ended) -> ServerState:
            self._plan(ended)
            state = self.programs.initial_state(self.schedule.stretch_of(done))
            return self.lanes.take(state, 0)

        for folder in self.folders:
            folder.adopt(donor, like)

    def train(self) -> list[dict[str, Any]]:
        """Runs all rounds not yet done, or until all runs have diverged; returns the summaries."""
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
                    model, carried = self.programs.model_of(before, state), state.strategy_state
                    state = self.programs.first_state(stretch, model, done)
                    if stretch.phase.continues:
                        state = state._replace(strategy_state=carried)
                before = stretch
                if done >= stretch.end or not self._alive():
                    continue
                for done, state in self._rounds(place, state, done):  # noqa: B020
                    if processes.any_of(self.interrupted()) and self._alive():
                        self._save(state, done)
                        raise Interrupted(f"stopped after round {done} of {self.schedule.end}")
        self._save_models(self.programs.model_of(self.schedule.stretches[-1], state))
        return [self._summary(i) for i in range(len(self.folders))]

    def _summary(self, i: int) -> dict[str, Any]:
        """Returns the summary of a run that has ended, written once."""
        if i not in self._summaries:
            self._summaries[i] = self.folders[i].finish(self._titles[i])
        return self._summaries[i]

    def _planned(self) -> list[Planned]:
        return [
            Planned(s.phase.name, s.end - s.start, s.phase.pass_equivalents)
            for s in self.schedule.stretches
        ]

    def _rounds(self, place: int, state: ServerState, done: int) -> Iterator:
        """Yields ``(rounds done, state)`` after each chunk of a phase; stops after a bad loss."""
        stretch = self.schedule.stretches[place]
        if done == stretch.start:
            self._warn(stretch, state)
        cuts = chunks(stretch, done, self.options)
        feed = self.programs.feed(stretch.phase, state, cuts)
        data = next(feed)
        program = self.programs.chunk(stretch, state, data, self._compiling)
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

    def _warn(self, stretch: Stretch, state: ServerState) -> None:
        """Warns where the precision of a phase ruins what its clients send."""
        for folder, text in zip(self.folders, self.programs.warnings(stretch, state), strict=True):
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
        ask = self.programs.check(stretch, state, self._compiling)
        with self.clock.during("evaluating"):
            state, metrics, is_over = ask()
            measured = {
                f"check_{name}": float(value)
                for name, value in metrics.items()
                if name not in FAULTS
            }
            return state, measured, bool(is_over)

    def _plan(self, ended: Ended) -> None:
        """Plans anew, with phases that ended early."""
        self.schedule = self.programs.planned
        for folder in self.folders:
            folder.plan(self.schedule)
        self._end(ended)

    def _end(self, ended: Ended) -> None:
        """Ends phases early, each after a round of what is then the run."""
        for place, done in ended:
            self.schedule = self.schedule.ended(place, done)
            for folder in self.folders:
                folder.ended(self.schedule, place, done)

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
                measured = self.programs.evaluate(stretch, self.programs.model_of(stretch, state))
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
            if folder.standing.divergence is not None and len(self.folders) > 1:
                self._summary(i)  # now: of several runs it will not be resumed with the others
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

    def _alive(self) -> list[RunFolder]:
        """Returns the runs that have not diverged."""
        return [folder for folder in self.folders if folder.standing.divergence is None]

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
            self._plan(ended)
            state = self.programs.initial_state(self.schedule.stretch_of(done))
            return [self.lanes.take(state, i) for i in range(len(self.folders))]

        done, states = resume(self.folders, like)
        if not done:
            return self.programs.initial_state(self.schedule.stretches[0]), 0
        if self.lanes.size == 1:
            return states[0], done
        return jax.device_put(self.lanes.stack(states), self.programs.replicated), done


def _title(config: Mapping[str, Any]) -> str:
    return (
        f"{config['algorithm']}, {config['data']['name']}, {config['model']['name']}, "
        f"seed {config['seed']}"
    )

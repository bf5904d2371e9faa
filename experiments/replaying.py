"""Any state of a run again, from the first state of its phase and the ledger's scalars alone."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine.chunk import recorded_shapes
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import ServerState
from zo_fl.host import ledger, workdir
from zo_fl.host.checkpoint import Checkpoints
from zo_fl.host.run_folder import ended_of
from zo_fl.host.schedule import Schedule, Stretch
from zo_fl.programs import Programs


class Replay:
    """The states of a run that has left checkpoints and a ledger in a folder.

    Args:
      path: the run's folder; nothing in it is changed.

    Attributes:
      config: the run's, but that its data lie on the device.
      built: its experiment.
      schedule: its phases, some of which may have ended early.

    Raises:
      ConfigError: it holds no run, one of a model that its config does not name, or a damaged one.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        saved = workdir.read_object(path / workdir.CONFIG, ("config",))
        if saved is None:
            raise ConfigError(f"{path} holds no run; change --workdir")
        if saved.get("model"):
            raise ConfigError(f"{path} holds a run of a model that is not in its config")
        self.config: dict[str, Any] = configs.resolve(configs.read_by(saved["config"]))
        self.config["run"]["data"] = "device"
        self.built = experiment.build(self.config)
        self._programs = Programs(self.built, [self.config])
        self._path, self._checkpoints = path, Checkpoints(path, read_only=True)
        self.schedule: Schedule = self._programs.planned
        latest = self.latest_round()
        for place, done in ended_of(self._checkpoints.progress(latest)) if latest else ():
            self.schedule = self.schedule.ended(place, done)

    def latest_round(self) -> int:
        """Returns the rounds done at the latest checkpoint, 0 if there is none."""
        return self._checkpoints.latest_round() or 0

    def saved(self, round_idx: int, like: ServerState) -> ServerState:
        """Returns the state of a checkpoint.

        Raises:
          ConfigError: there is none, it is damaged, or of another structure.
        """
        if round_idx not in self._checkpoints.rounds():
            raise ConfigError(f"{self._path} has no checkpoint of round {round_idx} any more")
        return self._checkpoints.restore(round_idx, like)[0]

    def first(self, stretch: Stretch) -> ServerState:
        """Returns the first state of a phase, from what was kept of the one before.

        Raises:
          ConfigError: as ``saved``.
        """
        programs = self._programs
        if not stretch.start:
            return programs.initial_state(stretch)
        before = self.schedule.stretches[stretch.place - 1]
        state = self.saved(stretch.start, programs.initial_state(before))
        first = programs.first_state(stretch, programs.model_of(before, state), stretch.start)
        if stretch.phase.continues:
            first = first._replace(strategy_state=state.strategy_state)
        return first

    def state(self, round_idx: int) -> ServerState:
        """Returns the state after a round.

        Raises:
          ConfigError: as ``states``.
        """
        ((_, state),) = self.states([round_idx])
        return state

    def states(self, rounds: Sequence[int]) -> Iterator[tuple[int, ServerState]]:
        """Yields ``(round, state after it)`` of some rounds of one phase, in order.

        Args:
          rounds: ascending. The phase's first state is that after its ``start``.

        Raises:
          ConfigError: a round is none of the run's or does not replay, the ledger or the first
            state is missing, or an entry of it is damaged.
        """
        last = rounds[-1]
        if not 0 < last <= self.schedule.end:
            raise ConfigError(f"round {last}; allowed: 1 to {self.schedule.end}")
        stretch = self.schedule.stretch_of(last)
        if not stretch.phase.replays:
            raise ConfigError(
                f"round {last} is of phase {stretch.phase.name}, in which clients send more than "
                "scalars: it cannot be rebuilt from them"
            )
        entries = [e for e in ledger.read(self._path) if stretch.start < e.round <= last]
        if [e.round for e in entries] != list(range(stretch.start + 1, last + 1)):
            missing = entries[-1].round if entries else stretch.start
            raise ConfigError(f"{self._path}: the ledger has no round {missing + 1}")
        state = self.first(stretch)
        if stretch.start in rounds:
            yield stretch.start, state
        apply, like = self._apply(stretch, state)
        for entry in entries:
            sent, statistics = jax.tree.unflatten(like, entry.leaves)
            after = apply(state, sent, self._programs.run_key)
            statistics = jax.device_put(statistics, self._programs.replicated)
            state = after._replace(model_state=statistics)
            if entry.round in rounds:
                yield entry.round, state

    def _apply(self, stretch: Stretch, state: ServerState):
        """Returns the jitted second half of a round, and the structure of what is recorded."""
        algorithm = make_algorithm(stretch.phase, self.built.engine)
        data = self.built.data_of(stretch.phase)
        shapes = recorded_shapes(algorithm, state, data, self._programs.run_key)
        options = self.built.engine.compiler_options
        return jax.jit(algorithm.apply, compiler_options=options), jax.tree.structure(shapes)


def digest(params) -> str:
    """Returns the SHA-256 of all arrays of some parameters."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()

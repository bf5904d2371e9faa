"""Any state of a run, rebuilt from the first state of its phase and the ledger's scalars."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zo_fl import config as configs
from zo_fl import experiment, loop
from zo_fl.compiled import Compiled, recorded_shapes
from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.host import devices, files, folder, ledger
from zo_fl.host.checkpoint import Checkpoints
from zo_fl.host.schedule import Position, Schedule, ScheduledPhase, position_of


class Replay:
    """The states of a run that has left checkpoints and a ledger in a folder.

    Args:
      path: the run's folder; nothing in it is changed.

    Attributes:
      config: the run's config, with its data on the device.
      built: the run's experiment.
      schedule: the run's phases, some of which may have ended early.

    Raises:
      ConfigError: the folder holds no run, a damaged one, or one of a user's own model.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        saved = files.read_json(path / folder.CONFIG, "config")
        if saved is None:
            raise ConfigError(f"{path} holds no run; change --workdir")
        if saved.get("model"):
            raise ConfigError(f"{path} holds a run of a model that is not in its config")
        devices.check_random_numbers(path, saved)
        self.config: dict[str, Any] = configs.resolve(configs.read_by(saved["config"]))
        self.config["run"]["data"] = "device"
        self.built = experiment.build(self.config)
        self._compiled = Compiled(self.built, self.config["run"])
        self._path, self._checkpoints = path, Checkpoints(path, read_only=True)
        latest = self.latest_round()
        saved = self._checkpoints.progress(latest) if latest else {}
        self._ended = position_of(latest, saved).ended
        self.schedule: Schedule = self._compiled.planned.ended(self._ended)

    def latest_round(self) -> int:
        """Returns the rounds done at the latest checkpoint, 0 if there is none."""
        return self._checkpoints.latest_round() or 0

    def saved(self, round_idx: int, like: ServerState) -> ServerState:
        """Returns the state of a checkpoint.

        Raises:
          ConfigError: there is no such checkpoint, or it is damaged or of another structure.
        """
        if round_idx not in self._checkpoints.rounds():
            raise ConfigError(f"{self._path} has no checkpoint of round {round_idx} any more")
        return self._checkpoints.restore(round_idx, like)[0]

    def like(self, round_idx: int) -> ServerState:
        """Returns a state with the shapes of the one after a round."""
        return loop.first_state(self._compiled, Position(round_idx, self._ended))

    def first(self, phase: ScheduledPhase) -> ServerState:
        """Returns the first state of a phase, from the saved end of the phase before.

        Raises:
          ConfigError: as ``saved``.
        """
        if not phase.start:
            return self.like(0)
        state = self.saved(phase.start, self.like(phase.start))
        return self._compiled.hand_over(self.schedule.phases[phase.place - 1], phase, state)

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
          rounds: ascending; the phase's ``start`` stands for its first state.

        Raises:
          ConfigError: the run has no such round, or it does not replay; the ledger or the first
            state is missing, or an entry of the ledger is damaged.
        """
        last = rounds[-1]
        if not 0 < last <= self.schedule.end:
            raise ConfigError(f"round {last}; allowed: 1 to {self.schedule.end}")
        phase = self.schedule.at(last)
        if not phase.phase.replays:
            raise ConfigError(
                f"round {last} is of phase {phase.phase.name}, in which clients send more than "
                "scalars: it cannot be rebuilt from them"
            )
        entries = [e for e in ledger.read(self._path) if phase.start < e.round <= last]
        if [e.round for e in entries] != list(range(phase.start + 1, last + 1)):
            missing = entries[-1].round if entries else phase.start
            raise ConfigError(f"{self._path}: the ledger has no round {missing + 1}")
        state = self.first(phase)
        if phase.start in rounds:
            yield phase.start, state
        apply, like = self._apply(phase, state)
        for entry in entries:
            sent, statistics = jax.tree.unflatten(like, entry.leaves)
            after = apply(state, sent, self._compiled.run_key)
            statistics = jax.device_put(statistics, self._compiled.replicated)
            state = after._replace(model_state=statistics)
            if entry.round in rounds:
                yield entry.round, state

    def _apply(self, phase: ScheduledPhase, state: ServerState):
        """Returns the jitted second half of a round, and the structure of its record."""
        algorithm = make_algorithm(phase.phase, self.built.engine)
        data = self.built.data_of(phase.phase)
        shapes = recorded_shapes(algorithm, state, data, self._compiled.run_key)
        options = self.built.engine.compiler_options
        return jax.jit(algorithm.apply, compiler_options=options), jax.tree.structure(shapes)


def digest(params) -> str:
    """Returns the SHA-256 of all arrays of a tree of parameters."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()

"""What of a run is compiled: first states, chunks of rounds, checks, evaluation; and their data.

All states lie alike, on the engine's mesh, between chunks; a phase may have a layout of its own
(``Engine.of``), to which its states go and from which they come back.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from zo_fl.config import numbers_that_differ
from zo_fl.engine import keys
from zo_fl.engine.chunk import Lanes, make_check, make_chunk
from zo_fl.engine.layout import AXIS, Engine
from zo_fl.engine.phase import Phase
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import FederatedData, PyTree, ServerState
from zo_fl.experiment import Experiment
from zo_fl.host import evaluate, rounding, streaming
from zo_fl.host.keeping import Keeper
from zo_fl.host.schedule import Stretch, make_schedule

Model = tuple[PyTree, PyTree]  # parameters and statistics
Compiling = Callable[[Phase], AbstractContextManager[Any]]


class Programs:
    """The device's side of one run, or of several side by side (``Lanes``).

    Args:
      built: the experiment.
      configs: one a run; they differ in their seed and in fields that may vary alone.
      shared: folder in which runs leave features for each other, or None.

    Attributes:
      lanes: the runs.
      replicated: how states lie.
      run_key: of each run.
      planned: the schedule, if no phase ends early.
    """

    def __init__(
        self,
        built: Experiment,
        configs: Sequence[Mapping[str, Any]],
        shared: Path | None = None,
    ):
        self._built, self._options = built, configs[0]["run"]
        self.lanes, self._numbers = Lanes(len(configs)), numbers_that_differ(configs)
        self.replicated = built.engine.replicated

        def run_keys():
            return self.lanes.stack([keys.run_key(config["seed"]) for config in configs])

        def first_weights(key):
            return built.task.init(keys.stream(key, "init"))

        # Made under jit: of several processes, none can send an array to another's devices.
        once = {
            "out_shardings": self.replicated,
            "compiler_options": built.engine.compiler_options_once,
        }
        self.run_key = jax.jit(run_keys, **once)()
        self._initial = jax.jit(self.lanes.lift(first_weights), **once)(self.run_key)
        params, model_state = jax.eval_shape(built.task.init, built.run_key)
        self.planned = make_schedule(built.phases, params, model_state, self._clients_of)
        self._models = [
            jax.jit(self.lanes.lift(stretch.phase.evaluated, (0, None)))
            for stretch in self.planned.stretches
        ]
        self._checks: dict[int, Any] = {}  # by the place of their phase
        options = built.engine.compiler_options
        precise = built.task.with_precision(self._options["eval_precision"])
        measure = evaluate.make_evaluate(precise, options)
        self._see = evaluate.make_seen(precise)
        self._evaluate = self.lanes.lift(measure, (0, 0, None))
        size = self._options["eval_batch_size"]
        self._sets = evaluate.make_sets(built.federation, size, built.engine)
        self._keeper = Keeper(built.task.head, shared, self.replicated, options)

    def initial_state(self, stretch: Stretch) -> ServerState:
        """Returns the first state of the run, as the phase of ``stretch`` would have it."""
        return self.first_state(stretch, self._initial, 0)

    def first_state(self, stretch: Stretch, model: Model, done: int) -> ServerState:
        """Returns a phase's first state: the model goes on, the optimizer starts afresh."""
        init = self.lanes.lift(stretch.phase.init, (0, 0, None))
        return jax.jit(init, out_shardings=self.replicated)(*model, np.int32(done))

    def model_of(self, stretch: Stretch, state: ServerState) -> Model:
        """Returns the parameters and statistics that a phase has arrived at."""
        data = None if self._built.engine.streamed else self._built.data
        return self._models[stretch.place](state, data)

    def evaluate(self, stretch: Stretch, model: Model) -> dict[str, np.ndarray]:
        """Returns a phase's model's ``test_loss``, ``test_accuracy`` and so on, of each run."""
        measured = {}
        for name, examples in self._sets.items():
            if self.lanes.size == 1:
                arguments, where = (*model, examples), self._built.engine.sharding(P(None, AXIS))
                seen = self._keeper.evaluated(stretch.phase, name, self._see, arguments, where)
                examples = examples if seen is None else examples._replace(features=seen)
            values = jax.device_get(self._evaluate(*model, examples))
            measured |= {f"{name}_{key}": value for key, value in values.items()}
        return measured

    def feed(
        self, phase: Phase, state: ServerState, cuts: Sequence[tuple[int, int]]
    ) -> Iterator[FederatedData]:
        """Yields the data of each chunk of a phase; ``cuts`` are rounds done before and after."""
        built, engine = self._built, self._engine_of(phase)
        data = built.data_of(phase)
        if engine.streamed:
            return streaming.stream(data, phase.groups, engine, built.run_key, cuts)
        if self.lanes.size == 1:
            data = self._keeper.data_of(phase, state, data)
        if engine != built.engine:
            data = jax.device_put(data, engine.replicated)
        return itertools.repeat(data)

    def chunk(
        self, stretch: Stretch, state: ServerState, data: FederatedData, compiling: Compiling
    ) -> Callable[[ServerState, FederatedData, int], tuple]:
        """Returns a phase's chunk of rounds, compiled, but for the key as ``make_chunk``'s.

        Args:
          stretch: of the rounds.
          state: one of its states.
          data: of its feed.
          compiling: entered with the phase while its program is compiled.
        """
        phase, home = stretch.phase, self.replicated
        engine, capacity = self._engine_of(phase), self._options["rounds_per_jit"]
        each = {name: np.asarray(of, np.float32) for name, of in self._numbers.items()}
        numbers = (each,) if each else ()

        def of_numbers(numbers):
            return make_algorithm(self._with(stretch, numbers), engine)

        algorithm = of_numbers if numbers else make_algorithm(phase, engine)
        recorded = home if phase.replays and self.lanes.size == 1 else None
        chunk = make_chunk(algorithm, capacity, self.lanes, engine.compiler_options, recorded)
        there = engine.replicated
        run_key = jax.device_put(self.run_key, there)
        with compiling(phase):
            like = jax.device_put(state, there)
            program = chunk.lower(like, data, run_key, np.int32(1), *numbers).compile()

        def run(state: ServerState, data: FederatedData, num_rounds: int) -> tuple:
            state = jax.device_put(state, there)
            state, *measured = program(state, data, run_key, np.int32(num_rounds), *numbers)
            return jax.device_put(state, home), *measured

        return run

    def check(
        self, stretch: Stretch, state: ServerState, compiling: Compiling
    ) -> Callable[[], tuple[ServerState, dict[str, Any], Any]]:
        """Returns a call that asks a phase's check, compiled; see ``make_check``."""
        check = stretch.phase.check
        assert check is not None, "the phase has no checks"
        done = int(state.round_idx)
        data = next(self.feed(check.phase, state, [(done, done + 1)]))
        if stretch.place not in self._checks:
            program = make_check(check, self._built.engine)
            with compiling(check.phase):
                lowered = program.lower(state, data, self.run_key)
                self._checks[stretch.place] = lowered.compile()
        return lambda: self._checks[stretch.place](state, data, self.run_key)

    def warnings(self, stretch: Stretch, state: ServerState) -> list[str | None]:
        """Returns of each run what to say of a precision that ruins what its clients send."""
        clients, options = self._clients_of(stretch.phase), self._built.engine.compiler_options
        found = []
        for i in range(self.lanes.size):
            phase = self._with(stretch, {name: of[i] for name, of in self._numbers.items()})
            mine, key = self.lanes.take(state, i), self.lanes.take(self.run_key, i)
            found.append(rounding.warning(phase, mine, clients, key, options))
        return found

    def _with(self, stretch: Stretch, numbers: Mapping[str, Any]) -> Phase:
        """Returns a phase with other values of fields that may vary, all of them or none."""
        if not numbers:
            return stretch.phase
        with_rounds = [one for one in self._built.phases_with(numbers) if one.num_rounds]
        return with_rounds[stretch.place]

    def _engine_of(self, phase: Phase) -> Engine:
        """Returns the layout of a phase's clients; of several runs side by side it is the run's."""
        engine = self._built.engine
        return engine.of(phase.groups) if self.lanes.size == 1 else engine

    def _clients_of(self, phase: Phase) -> FederatedData:
        """Returns what the clients of a phase look at, on the host."""
        federation = self._built.federation
        return federation.validation if phase.on_validation else federation.clients

"""The compiled side of a run: first states, chunks of rounds, evaluation, and their data.

Between chunks all states lie alike, on the engine's mesh. A phase may have a layout of its own
(``Engine.of``): its states are moved there for a chunk and back.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from zo_fl import config as configs
from zo_fl.engine import algorithm, keys
from zo_fl.engine.algorithm import Evaluated, Phase, ServerState, Stop
from zo_fl.engine.layout import Engine
from zo_fl.engine.round import FederatedAlgorithm, make_algorithm
from zo_fl.engine.types import Array, FederatedData, PyTree
from zo_fl.experiment import Experiment
from zo_fl.host import devices, evaluate, streaming
from zo_fl.host.features import FeatureCache
from zo_fl.host.schedule import Schedule, ScheduledPhase, make_schedule

Model = tuple[PyTree, PyTree]  # parameters and statistics
RunChunk = Callable[[ServerState, FederatedData, int], tuple]


class Compiled:
    """The device's side of a run.

    Args:
      built: the experiment.
      options: the config block ``run``.
      shared: folder in which runs leave features for each other, or None.
      runs: configs of several runs that are one program and differ in seed and numbers. States,
        keys, metrics and accuracies then have a leading axis of runs.

    Attributes:
      options: as given.
      planned: the schedule, if no phase ends early.
      replicated: the sharding of states.
      run_key: ``key[]``, or ``key[runs]``.
      first: the run's first weights.
    """

    def __init__(
        self,
        built: Experiment,
        options: Mapping[str, Any],
        shared: Path | None = None,
        runs: Sequence[Mapping[str, Any]] = (),
    ):
        self._built, self.options, self._together = built, options, len(runs) > 1
        self._lift: Callable[..., Callable] = jax.vmap if self._together else _as_is
        differ = configs.numbers_that_differ(runs) if self._together else {}
        self._numbers = {field: np.asarray(of, np.float32) for field, of in differ.items()}
        engine, federation = built.engine, built.federation
        self.replicated = engine.replicated

        def first_weights(key):
            return built.task.init(keys.stream(key, "init"))

        # Made under jit: of several processes, none can send an array to another's devices.
        once = {"out_shardings": self.replicated, "compiler_options": engine.compiler_options_once}

        def make_key():
            if not self._together:
                return keys.run_key(built.seed)
            return jnp.stack([keys.run_key(one["seed"]) for one in runs])

        self.run_key = jax.jit(make_key, **once)()
        self.first: Model = jax.jit(self._lift(first_weights), **once)(self.run_key)
        params, model_state = jax.eval_shape(built.task.init, jax.eval_shape(keys.run_key, 0))
        self.planned: Schedule = make_schedule(
            built.phases, params, model_state, federation.clients, federation.validation
        )
        measure = evaluate.make_evaluate(built.task, engine.compiler_options)
        self._evaluate = self._lift(measure, (0, 0, None))
        asked = {p.phase.stop.tiers for p in self.planned.phases if p.phase.stop is not None}
        size = options["eval_batch_size"]
        self._sets = evaluate.make_sets(federation, size, engine, asked - {"all"})
        self._features = FeatureCache(built.task, engine, shared)
        self._programs: dict[Callable, Callable] = {}

    def start(self, phase: Phase, model: Model, done: int, before: PyTree = None) -> ServerState:
        """Returns a phase's first state, see ``algorithm.start``."""
        begin = self._lift(functools.partial(algorithm.start, phase), (0, 0, None, 0))
        return jax.jit(begin, out_shardings=self.replicated)(*model, np.int32(done), before)

    def model_of(self, of: Evaluated, state: ServerState) -> Model:
        """Returns ``of(state, data)``, the parameters and statistics of a state."""
        data = None if self._built.engine.streamed else self._built.data
        return self._programs.setdefault(of, jax.jit(self._lift(of, (0, None))))(state, data)

    def hand_over(
        self, before: ScheduledPhase, phase: ScheduledPhase, state: ServerState
    ) -> ServerState:
        """Returns the first state of a phase, from the last one of the phase before."""
        model = self.model_of(before.phase.model, state)
        return self.start(phase.phase, model, phase.start, state.strategy_state)

    def evaluate(self, phase: Phase, model: Model) -> dict[str, np.ndarray]:
        """Returns ``test_loss``, ``test_accuracy``, ``val_loss``, ``val_accuracy`` of a model."""
        return {
            f"{name}_{key}": value
            for name in ("test", "val")
            for key, value in self._measure(phase, name, model).items()
        }

    def count_right(self, phase: Phase, stop: Stop, state: ServerState) -> tuple[int, float]:
        """Returns the count of right validation examples for a phase's ``Stop``, and the share."""
        model = self.model_of(stop.asked or phase.model, state)
        name = "val" if stop.tiers == "all" else f"val {stop.tiers}"
        accuracy = float(self._measure(phase, name, model, asks=True)["accuracy"])
        return round(accuracy * int(self._sets[name].size)), accuracy

    def keep(self, stop: Stop, state: ServerState) -> ServerState:
        """Returns the state after the best answer so far to a ``Stop``."""
        if stop.keep is None:
            return state
        return self._programs.setdefault(stop.keep, jax.jit(stop.keep))(state)

    def _measure(self, phase: Phase, name: str, model: Model, asks: bool = False) -> dict[str, Any]:
        """Returns loss and accuracy on an evaluation set, by features where the phase keeps any."""
        examples = self._sets[name]
        if not self._together:
            examples = self._features.of_set(phase.keeping, name, model, examples, asks)
        return jax.device_get(self._evaluate(*model, examples))

    def feed(
        self, phase: Phase, state: ServerState, cuts: Sequence[tuple[int, int]]
    ) -> Iterator[FederatedData]:
        """Yields the data of each chunk of a phase; ``cuts`` are rounds done before and after."""
        built, engine = self._built, self._engine_of(phase)
        data = built.data_of(phase)
        if engine.streamed:
            return streaming.stream(data, phase.groups, engine, self.run_key, cuts)
        if not self._together:
            data = self._features.data_of(phase.keeping, state, data)
        if engine != built.engine:
            data = jax.device_put(data, engine.replicated)
        return itertools.repeat(data)

    def chunk(self, phase: ScheduledPhase, state: ServerState, data: FederatedData) -> RunChunk:
        """Returns a phase's compiled chunk, for a state of it and its feed's data.

        It is called as ``(state, data, rounds) -> (state, metrics[, sent])``, and returns what was
        sent if the rounds replay.
        """
        engine, home = self._engine_of(phase.phase), self.replicated
        recorded = home if phase.phase.replays and not self._together else None
        numbers = self._numbers

        def algorithm_of(numbers) -> FederatedAlgorithm:
            varied = self._built.phases_with(numbers) if numbers else self._built.phases
            return make_algorithm([p for p in varied if p.num_rounds][phase.place], engine)

        capacity = min(self.options["rounds_per_jit"], self.planned.end)
        chunk = make_chunk(algorithm_of, capacity, recorded)
        there = engine.replicated
        run_key = jax.device_put(self.run_key, there)
        jitted = jax.jit(
            self._lift(chunk, (0, None, 0, None, 0)),
            donate_argnums=0,
            out_shardings=None if recorded is None else (None, None, recorded),
            compiler_options=engine.compiler_options,
        )
        like = jax.device_put(state, there)
        program = jitted.lower(like, data, run_key, np.int32(1), numbers).compile()
        devices.return_memory()

        def run(state: ServerState, data: FederatedData, num_rounds: int) -> tuple:
            state = jax.device_put(state, there)
            state, *measured = program(state, data, run_key, np.int32(num_rounds), numbers)
            return jax.device_put(state, home), *measured

        return run

    def _engine_of(self, phase: Phase) -> Engine:
        """Returns the layout of a phase's clients; several runs at once have that of the run."""
        engine = self._built.engine
        return engine if self._together else engine.of(phase.groups)

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Returns, of each phase, the values that the config leaves to the program, as JSON."""
        found = {}
        for phase in (scheduled.phase for scheduled in self.planned.phases):
            engine, groups = self._engine_of(phase), phase.groups
            examples = self._built.data_of(phase).client_indices.shape[1]
            at_once = [engine.chunk_size(g.client, g.cohort_size, examples) for g in groups]
            layout = {"num_devices": engine.mesh.size, "clients_per_vmap": max(at_once)}
            of_run = {name: n for name, n in layout.items() if self.options[name] == "auto"}
            found[phase.name] = of_run | {k: v for g in groups for k, v in g.chosen.items()}
        return {name: values for name, values in found.items() if values}

    def take(self, tree: PyTree, i: int) -> PyTree:
        """Returns the part of run ``i`` in states, metrics or models of all runs."""
        return jax.tree.map(lambda leaf: leaf[i], tree) if self._together else tree

    def stack(self, states: Sequence[ServerState]) -> ServerState:
        """Returns the states of all runs as one."""
        if not self._together:
            return states[0]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return jax.device_put(stacked, self.replicated)


def _as_is(function: Callable, in_axes: Any = 0) -> Callable:
    return function


def make_chunk(
    algorithm_of: Callable[[Any], FederatedAlgorithm],
    capacity: int,
    recorded: Sharding | None = None,
) -> Callable[..., tuple]:
    """Returns ``(state, data, run_key, num_rounds i32[], numbers) -> (state, metrics)``.

    The number of rounds is an argument: one program serves every chunk.

    Args:
      algorithm_of: ``numbers -> algorithm``, whose rounds are run.
      capacity: the largest ``num_rounds``; metrics are ``f32[capacity]``, filled up to num_rounds.
      recorded: sharding of a third output, ``recorded_shapes`` with a leading ``capacity``, if any.
    """

    def run_chunk(state: ServerState, data, run_key, num_rounds, numbers):
        made = algorithm_of(numbers)

        # Under jit the round is traced once, for its shapes and for the loop; inlined, the program
        # shows nothing of it.
        @functools.partial(jax.jit, inline=True)
        def one(state, data, run_key):
            state, metrics, sent = made.round(state, data, run_key)
            return state, (metrics, () if recorded is None else (sent, state.model_state))

        shapes = jax.eval_shape(one, state, data, run_key)[1]
        buffers = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

        def body(i, carry):
            state, buffers = carry
            state, measured = one(state, data, run_key)
            return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffers, measured)

        state, (metrics, kept) = jax.lax.fori_loop(0, num_rounds, body, (state, buffers))
        return (state, metrics) if recorded is None else (state, metrics, kept)

    return run_chunk


def recorded_shapes(
    algorithm: FederatedAlgorithm, state: ServerState, data: PyTree, run_key: Array
) -> PyTree:
    """Returns the shapes of a round's record: ``(sent, model_state)``."""
    after, _, sent = jax.eval_shape(algorithm.round, state, data, run_key)
    return sent, after.model_state

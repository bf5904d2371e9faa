"""The cost of one client's step: memory by formula and by the compiler, and time.

Memory by the paper's equations 4 and 5 in bytes, P parameters and BS examples at once:

    first order    4 (2 P + BS * sum of activations)
    zeroth order   4 (2 P + BS * largest activation)

Source: ZOWarmUp, A.3; the zeroth-order memory of its Table 1 is 2 P alone.
"""

import functools
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine import keys, trees
from zo_fl.engine.algorithm import Group, Phase, ServerState, start
from zo_fl.engine.layout import Engine
from zo_fl.engine.types import LOW, FederatedData
from zo_fl.host.costs import first_client


class Activations(NamedTuple):
    """Floats that come out of one example's convolutions, norms and dense layers."""

    total: int
    largest: int  # output of one layer


class StepMemory(NamedTuple):
    """The bytes that the compiler reserves for one client's step."""

    arguments: int  # parameters, statistics, images
    outputs: int  # message, statistics, metrics
    temporaries: int  # everything in between at its peak


def activations(module: nn.Module, image_shape: tuple[int, ...]) -> Activations:
    """Returns the activation counts of a model for images of a shape ``(H, W, c)``."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(image):
        variables = module.init(jax.random.key(0), image, train=False)
        _, captured = module.apply(
            variables, image, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        return variables["params"], captured["intermediates"]

    params, outputs = jax.eval_shape(forward, image)
    sizes = [int(np.prod(leaf.shape)) for leaf in _layer_outputs(params, outputs)]
    return Activations(sum(sizes), max(sizes))


def _layer_outputs(params, outputs) -> Iterator:
    """Yields the output of each module that has parameters of its own and no submodules."""
    if not any(isinstance(value, dict) for value in params.values()):
        yield from jax.tree.leaves(outputs["__call__"])
        return
    for name, subtree in params.items():
        if isinstance(subtree, dict) and name in outputs:
            yield from _layer_outputs(subtree, outputs[name])


def memory_formula(num_params: int, batch_size: int, floats: int) -> int:
    """Returns the paper's bytes ``4 (2 P + BS * floats)``; floats are a sum or a maximum."""
    return 4 * (2 * num_params + batch_size * floats)


def compile_step(
    phase: Phase, group: Group, params, model_state, data: FederatedData, engine: Engine
):
    """Returns one client's step, compiled: ``(state, batch, keys) -> ClientResult``.

    Args:
      phase: any phase.
      group: one of its groups.
      params: shapes, ``jax.ShapeDtypeStruct``.
      model_state: likewise.
      data: the federation; the batch is shaped like one of its clients'.
      engine: the devices that it is compiled for.
    """
    batch = jax.eval_shape(_first_batch(phase), params, model_state, data)
    own = jax.eval_shape(_first_keys)
    state = _state_shapes(phase, params, model_state)
    step = jax.jit(group.client.update, compiler_options=engine.compiler_options)
    return step.lower(state, batch, own).compile()


def step_memory(
    step, phase: Phase, group: Group, params, model_state, data: FederatedData, engine: Engine
) -> StepMemory:
    """Returns the bytes that the compiler reserves for a client's step.

    If a client holds only a part of the model, only that part counts. If clients keep features,
    making them counts where it takes more than the step.

    ``step`` is from ``compile_step``, of the other arguments.
    """
    unused = 0
    if group.client.holds_part:
        received = jax.eval_shape(group.client.receives, _state_shapes(phase, params, model_state))
        unused = trees.num_bytes((params, model_state)) - trees.num_bytes(received)
    found = [_memory(step.memory_analysis(), unused)]
    if phase.keeping is not None and phase.keeping.on_client:
        examples = jax.eval_shape(first_client, data).examples
        making = jax.jit(phase.keeping.compute, compiler_options=engine.compiler_options)
        compiled = making.lower(params, model_state, examples).compile()
        found.append(_memory(compiled.memory_analysis(), 0))
    return max(found, key=sum)


def memory_of_run(config: Mapping[str, Any]) -> int:
    """Returns the bytes of the largest step of a saved run's low-resource clients, 0 of none."""
    built = experiment.build(configs.resolve(configs.read_by(config)))
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    is_low = np.asarray(built.federation.clients.client_tiers) == LOW
    largest = 0
    for phase in built.phases:
        for group in phase.groups:
            if phase.num_rounds and is_low[group.eligible].any():
                step_of = phase, group, params, model_state, built.data_of(phase), built.engine
                largest = max(largest, sum(step_memory(compile_step(*step_of), *step_of)))
    return largest


def step_seconds(step, phase: Phase, params, model_state, data: FederatedData) -> float:
    """Returns the seconds of a client's step here: the median of three, after a first one.

    ``step`` is from ``compile_step``; ``params`` and ``model_state`` are arrays.
    """
    state = start(phase, params, model_state)._replace(opt_state=())
    batch = jax.jit(_first_batch(phase))(params, model_state, data)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(step(state, batch, _first_keys()))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _memory(analysis: Any, unused: int) -> StepMemory:
    return StepMemory(
        analysis.argument_size_in_bytes - unused,
        analysis.output_size_in_bytes,
        analysis.temp_size_in_bytes,
    )


def _state_shapes(phase: Phase, params, model_state) -> ServerState:
    """Returns what a client is told of the server's state: all but the optimizer's."""
    state = jax.eval_shape(functools.partial(start, phase), params, model_state)
    return state._replace(opt_state=())


def _first_keys() -> keys.Keys:
    """Returns the keys of the first client in the first round."""
    return keys.of_round(keys.run_key(0), 0).of(jnp.int32(0))


def _first_batch(phase: Phase):
    """Returns ``(params, model_state, data) -> the first client's batch`` of a phase."""

    def look(params, model_state, data: FederatedData):
        batch = first_client(data)
        if phase.keeping is None or not phase.keeping.on_client:
            return batch
        kept = phase.keeping.compute(params, model_state, batch.examples)
        return batch._replace(examples=kept)

    return look

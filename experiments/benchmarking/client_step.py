"""What one client's step costs: memory by formula and by the compiler, and time.

Memory by the paper's equations 4 and 5 in bytes, P parameters and BS examples at once:

    first order    4 (2 P + BS * sum of activations)
    zeroth order   4 (2 P + BS * largest activation)

Source: ZOWarmUp, A.3; the zeroth-order memory of its Table 1 is 2 P alone.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import keys, trees
from zo_fl.engine.layout import Engine
from zo_fl.engine.phase import Phase
from zo_fl.engine.strategy import Group
from zo_fl.engine.types import FederatedData
from zo_fl.host.traffic import first_client


class Activations(NamedTuple):
    """Floats that one example's forward pass produces.

    Attributes:
      total: over the outputs of all convolutions, norms and dense layers.
      largest: of the largest such output.
    """

    total: int
    largest: int


class StepMemory(NamedTuple):
    """What the compiler reserves for one client's step, in bytes.

    Attributes:
      arguments: parameters, statistics, images.
      outputs: message, statistics, metrics.
      temporaries: everything in between at its peak.
    """

    arguments: int
    outputs: int
    temporaries: int


def activations(module: nn.Module, image_shape: tuple[int, ...]) -> Activations:
    """Returns the activation counts of a model, from the shapes of its layers' outputs.

    Args:
      module: see ``zo_fl.models``.
      image_shape: ``(H, W, c)``.
    """
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
    """Yields the output of every module that holds parameters of its own and has no submodules."""
    has_submodules = any(isinstance(value, dict) for value in params.values())
    if not has_submodules:
        yield from jax.tree.leaves(outputs["__call__"])
        return
    for name, subtree in params.items():
        if isinstance(subtree, dict) and name in outputs:
            yield from _layer_outputs(subtree, outputs[name])


def memory_formula(num_params: int, batch_size: int, floats: int) -> int:
    """Returns the paper's bytes: ``4 (2 P + BS * floats)``, floats being a sum or a maximum."""
    return 4 * (2 * num_params + batch_size * floats)


def compile_step(
    phase: Phase, group: Group, params, model_state, data: FederatedData, engine: Engine
):
    """Returns one client's step, compiled: ``(state, batch, run_key) -> ClientResult``.

    Args:
      phase: any phase.
      group: one of its groups.
      params: shapes, ``jax.ShapeDtypeStruct``.
      model_state: likewise.
      data: the federation; one client's batch is shaped like its clients'.
      engine: of the devices that it is compiled for.
    """
    batch = jax.eval_shape(_first_batch(phase), params, model_state, data)
    key = jax.eval_shape(lambda: keys.run_key(0))
    state = jax.eval_shape(phase.init, params, model_state)._replace(opt_state=())
    step = jax.jit(group.strategy.client_update, compiler_options=engine.compiler_options)
    return step.lower(state, batch, key).compile()


def step_memory(
    step, phase: Phase, group: Group, params, model_state, data: FederatedData, engine: Engine
) -> StepMemory:
    """Returns what the compiler reserves for a client's step.

    Of a client that holds a part of the model only that is counted: a narrow model is narrow. Where
    clients keep features, it is what making them takes if that is more.

    Args:
      step: from ``compile_step``, of the other arguments.
      phase: any phase.
      group: one of its groups.
      params: shapes.
      model_state: likewise.
      data: the federation.
      engine: of the devices that it was compiled for.
    """
    analysis: Any = step.memory_analysis()
    state = jax.eval_shape(phase.init, params, model_state)._replace(opt_state=())
    unused = 0
    if group.strategy.has_part:
        received = jax.eval_shape(group.strategy.receives, state)
        unused = trees.num_bytes((params, model_state)) - trees.num_bytes(received)
    found = [_memory(analysis, unused)]
    if phase.keeping is not None and phase.keeping.on_client:
        examples = jax.eval_shape(first_client, data).examples
        making = jax.jit(phase.keeping.compute, compiler_options=engine.compiler_options)
        compiled = making.lower(params, model_state, examples).compile()
        found.append(_memory(compiled.memory_analysis()))
    return max(found, key=sum)


def _memory(analysis: Any, unused: int = 0) -> StepMemory:
    return StepMemory(
        analysis.argument_size_in_bytes - unused,
        analysis.output_size_in_bytes,
        analysis.temp_size_in_bytes,
    )


def step_seconds(step, phase: Phase, params, model_state, data: FederatedData) -> float:
    """Returns the time of a client's step on this machine: the median of three, after a first one.

    Args:
      step: from ``compile_step``.
      phase: any phase.
      params: arrays.
      model_state: likewise.
      data: the federation.
    """
    state = phase.init(params, model_state)._replace(opt_state=())
    batch = jax.jit(_first_batch(phase))(params, model_state, data)
    arguments = state, batch, keys.run_key(0)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _first_batch(phase: Phase):
    """Returns ``(params, model_state, data) -> `` what the first client looks at in a phase."""

    def look(params, model_state, data: FederatedData):
        batch = first_client(data)
        if phase.keeping is None or not phase.keeping.on_client:
            return batch
        kept = phase.keeping.compute(params, model_state, batch.examples)
        return batch._replace(examples=kept)

    return look

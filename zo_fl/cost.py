"""What a run costs: bytes by the shapes of the real messages, memory by formula and by the
compiler.

Communication of one round, over all clients together:

    uplink     cohort x (message + uploaded statistics)
    downlink   receivers x (what the update is rebuilt from + the new statistics)

A first-order round is received by its cohort, as the new model (HeteroFL's narrow clients: their
slice of it). A zeroth-order round is received by
the whole population, as scalars: every client must follow every update, and one that was absent
catches up later with the same bytes. When such a phase begins, everyone receives the model once.
Directions come from keys and cost nothing.

Memory of one client's step, the paper's equations 4 and 5 in bytes, P parameters and BS examples at
once:

    first order    4 (2 P + BS * sum of activations)
    zeroth order   4 (2 P + BS * largest activation)

Source: ZOWarmUp, A.3 and Table 1, whose communication columns are scrambled as printed and whose
zeroth-order memory is 2 P alone.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl import keys, trees
from zo_fl.data import federated
from zo_fl.engine import Engine
from zo_fl.phase import Phase
from zo_fl.types import FederatedData, Group, ModelState, Params


class Traffic(NamedTuple):
    """Bytes over all clients together.

    Attributes:
      at_start: downlink once, when the phase begins.
      uplink: a round.
      downlink: a round.
    """

    at_start: int
    uplink: int
    downlink: int


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


def phase_traffic(
    phase: Phase, params: Params, model_state: ModelState, data: FederatedData
) -> Traffic:
    """Returns a phase's traffic, from the shapes of what its groups of clients send and receive.

    Args:
      phase: any phase.
      params: arrays or ``jax.ShapeDtypeStruct``.
      model_state: likewise.
      data: the federation, arrays or shapes.
    """
    groups = [group_traffic(group, phase, params, model_state, data) for group in phase.groups]
    uplink = sum(group.uplink for group in groups)
    if not all(group.strategy.replays for group in phase.groups):
        return Traffic(0, uplink, sum(group.downlink for group in groups))
    population = data.client_sizes.shape[0]
    model = trees.num_bytes(params) + trees.num_bytes(model_state)
    return Traffic(population * model, uplink, population * sum(g.broadcast for g in groups))


class GroupTraffic(NamedTuple):
    """Bytes of one group in a round.

    Attributes:
      uplink: of the cohort.
      downlink: to the cohort, of what its strategy receives.
      broadcast: to each client that follows the rounds by replaying them.
    """

    uplink: int
    downlink: int
    broadcast: int


def group_traffic(
    group: Group, phase: Phase, params: Params, model_state: ModelState, data: FederatedData
) -> GroupTraffic:
    """Returns the traffic of one group of a phase; the arguments are ``phase_traffic``'s."""

    def one(params, model_state, data):
        state = phase.algorithm.init(params, model_state)._replace(opt_state=())
        batch, key = _first_client(data), keys.run_key(0)
        result = group.strategy.client_update(state, batch, key)
        update = group.strategy.decode(result.message, batch.client_id, state, key)
        return result, update, group.strategy.receives(state)

    result, update, received = jax.eval_shape(one, params, model_state, data)
    message, uploaded = trees.num_bytes(result.message), trees.num_bytes(result.model_state)
    # All messages, or what they add up to where that is smaller (shared directions, pools).
    broadcast = min(group.cohort_size * message, trees.num_bytes(update)) + uploaded
    return GroupTraffic(
        group.cohort_size * (message + uploaded),
        group.cohort_size * trees.num_bytes(received),
        broadcast,
    )


def cumulative(traffic: Traffic, rounds: int) -> tuple[int, int]:
    """Returns ``(uplink, downlink)`` bytes after some rounds of a phase."""
    if rounds == 0:
        return 0, 0
    return traffic.uplink * rounds, traffic.at_start + traffic.downlink * rounds


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
    batch = jax.eval_shape(_first_client, data)
    key = jax.eval_shape(lambda: keys.run_key(0))
    state = jax.eval_shape(phase.algorithm.init, params, model_state)._replace(opt_state=())
    step = jax.jit(group.strategy.client_update, compiler_options=engine.compiler_options)
    return step.lower(state, batch, key).compile()


def step_memory(step, phase: Phase, group: Group, params, model_state) -> StepMemory:
    """Returns what the compiler reserves for a client's step.

    What the client receives is counted as an argument, as large as its strategy says: a narrow
    model's is narrow.

    Args:
      step: from ``compile_step``, of the other arguments.
      phase: any phase.
      group: one of its groups.
      params: shapes.
      model_state: likewise.
    """
    analysis: Any = step.memory_analysis()
    state = jax.eval_shape(phase.algorithm.init, params, model_state)._replace(opt_state=())
    received = jax.eval_shape(group.strategy.receives, state)
    unused = trees.num_bytes((params, model_state)) - trees.num_bytes(received)
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
    state = phase.algorithm.init(params, model_state)._replace(opt_state=())
    arguments = state, jax.jit(_first_client)(data), keys.run_key(0)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _first_client(data: FederatedData):
    return trees.squeeze(federated.gather(data, jnp.zeros(1, jnp.int32)))

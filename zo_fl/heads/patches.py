"""Features from second moments: the kernels of the model ``patches``, set by the high tier.

    patches  client: sum p, sum p p^T over all image patches p
             server: mean m, covariance C = V diag(w) V^T, whitening Z = V diag((w + 0.1)^-1/2) V^T
                     u = (p - m) Z / |(p - m) Z| of p drawn from a Gaussian of m and C by a key
    means    u become spherical_means of whitened patches
    kernels  Z u, with biases -m Z u

No pixel and no patch leaves a client. Low-resource clients take no part; they are sent the kernels
with the model.

Sources: Coates and Ng 2011 and 2012; Thiry et al. (arXiv 2101.07528).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import cohorts, keys
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.fields import Block, ConfigError, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Examples, Params, PyTree, Task
from zo_fl.heads import (
    closed_form,
    features,
    kernel_network,
    spherical_means,
    steps,
    window_sums,
)
from zo_fl.heads.spherical_means import Assigned
from zo_fl.heads.window_sums import WindowMoments
from zo_fl.models.patches import FILTERS, NETWORK, Patches, image_patches

_FLOOR = 0.1  # added to variances along the principal directions of patches

BLOCKS: dict[str, Block] = {
    "patches": {
        "num_rounds": Field(
            12, "sweeps of k-means over patches, a round each, after one of moments", at_least=0
        ),
    }
}


class Kernels(NamedTuple):
    """The making of kernels.

    Attributes:
      windows: rows and columns of an image's patches.
    """

    task: Task
    module: Patches
    windows: tuple[int, int]

    def look(self, examples: Examples) -> Array:
        """Returns the patches ``f32[m, H', W', d]`` of examples."""
        images = self.task.inputs(examples)
        return image_patches(images, self.module.size, self.module.norm == "patch")


class Whitened(NamedTuple):
    """The space of whitened patches, and what become kernels.

    Attributes:
      mean: m, ``f32[d]``.
      whitening: Z, ``f32[d, d]``.
      units: u, ``f32[d, K]``.
    """

    mean: Array
    whitening: Array
    units: Array

    def of(self, patches: Array) -> Array:
        """Returns whitened patches of norm 1, ``f32[m, d]``."""
        return self.of_centred(patches - self.mean[None])

    def of_centred(self, patches: Array) -> Array:
        """Returns the same of patches less m."""
        white = closed_form.product(patches, self.whitening)
        return white / jnp.maximum(jnp.linalg.norm(white, axis=1, keepdims=True), 1e-6)


def phases(problem: Problem, *, patches: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the phases that set the kernels; ``patches`` is the config block.

    Raises:
      ConfigError: the model has no patches.
    """
    task, module = problem.task, problem.task.module
    if not isinstance(module, Patches):
        raise ConfigError(
            "patches sets the kernels of a model of image patches, and this model has none; set "
            "config.model.name='patches'"
        )
    one = jax.tree.map(lambda leaf: leaf[:1], problem.clients.examples)
    height, width = jax.eval_shape(task.inputs, one).shape[1:3]
    windows = height - module.size + 1, width - module.size + 1
    kernels, sweeps = Kernels(task, module, windows), patches["num_rounds"]

    def phase(name: str, rounds: int, update, set_kernels) -> Phase:
        # Patches cost as much as a few percent of a forward pass: none is counted.
        client = Client(partial(update, kernels), lambda message, *_: message, one_model=True)
        group = cohorts.make_group(problem, client, features.passes(0), steps.HIGH_TIER)
        server = assign(partial(set_kernels, kernels), init=partial(_start, kernels))
        return Phase(name, rounds, (group,), server, evaluated=None)

    return (
        phase("patches", min(sweeps, 1), _moments, _draw_kernels),
        phase("means", sweeps, _assign, _move_kernels),
        *(kernel_network.phases(problem, NETWORK, sweeps) if module.network else ()),
    )


def _start(kernels: Kernels, params: Params, before: PyTree) -> Whitened:
    """Returns the space before any round, or that of the phase before."""
    if isinstance(before, Whitened):
        return before
    *sides, count = params[FILTERS]["kernel"].shape
    dim = math.prod(sides)
    return Whitened(jnp.zeros(dim), jnp.zeros((dim, dim)), jnp.zeros((dim, count)))


def _moments(kernels: Kernels, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    return features.result(batch, window_sums.moments(kernels.look, batch))


def _draw_kernels(kernels: Kernels, found: WindowMoments, state: ServerState, of_round: Keys):
    mean, covariance = window_sums.mean_and_covariance(found, math.prod(kernels.windows))
    variances, vectors = jnp.linalg.eigh(covariance)
    variances = jnp.maximum(variances, 0)
    scaled = vectors * jax.lax.rsqrt(variances + _FLOOR)[None]
    key = keys.stream(of_round.round, "patches")
    drawn = jax.random.normal(key, (kernels.module.kernels, len(mean))) * jnp.sqrt(variances)[None]
    old, ready = state.strategy_state, found.images > 0
    space = Whitened(mean, closed_form.product(scaled, vectors.T), old.units)
    units = space.of_centred(closed_form.product(drawn, vectors.T)).T
    space = space._replace(units=units)
    space = jax.tree.map(lambda n, o: jnp.where(ready, n, o), space, old)
    return _with_kernels(state.params, space, ready), space


def _with_kernels(params: Params, space: Whitened, ready: Array) -> Params:
    """Returns parameters with kernels ``Z u``, where ``ready``."""
    kernel = closed_form.product(space.whitening, space.units)
    old, bias = params[FILTERS], -closed_form.product(space.mean[None], kernel)[0]
    filters = {"kernel": kernel.reshape(old["kernel"].shape), "bias": bias}
    return params | {FILTERS: jax.tree.map(lambda n, o: jnp.where(ready, n, o), filters, old)}


def _assign(kernels: Kernels, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    space, key = state.strategy_state, keys.stream(own.client, "patches")
    sums = spherical_means.assign(kernels.look, batch, space.units, key, units=space.of)
    return features.result(batch, sums)


def _move_kernels(kernels: Kernels, found: Assigned, state: ServerState, of_round: Keys):
    space = state.strategy_state
    ready = (found.counts.sum() > 0) & jnp.any(space.whitening)
    moved = spherical_means.moved(found, space.units, of_round.round)
    space = space._replace(units=jnp.where(ready, moved, space.units))
    return _with_kernels(state.params, space, ready), space

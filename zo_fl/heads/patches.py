"""Features from second moments: the kernels of the model ``patches``, set by the high tier.

    client j:  sum p, sum p p^T over all its image patches p; with kernels = "patches" some of them
    server:    mean m, covariance C = V diag(w) V^T, whitening Z = V diag((w + 0.1)^-1/2) V^T
               f = (p - m) Z / |(p - m) Z|,   kernel Z f,   bias -m Z f

``kernels = "patches"``: p are patches of the high tier's images. ``"means"``: p are drawn from a
Gaussian of mean m and covariance C by a key, and f become ``spherical_means`` of whitened patches:
no pixel leaves a client. Low-resource clients take no part; they are sent the kernels with the
model.

Sources: Coates and Ng 2011; Thiry et al. (arXiv 2101.07528).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, keys
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.fields import Block, ConfigError, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign, no_state
from zo_fl.engine.types import Array, Examples, Params, PyTree, Task
from zo_fl.heads import (
    closed_form,
    features,
    kernel_network,
    spherical_means,
    steps,
    window_sums,
)
from zo_fl.heads.spherical_means import SWEEPS, Assigned
from zo_fl.heads.window_sums import WindowMoments
from zo_fl.models.patches import FILTERS, NETWORK, Patches, image_patches

_FLOOR = 0.1  # added to variances along the principal directions of patches

BLOCKS: dict[str, Block] = {
    "patches": {
        "num_rounds": Field(1, "rounds; one is enough", at_least=0),
        "kernels": Field(
            "patches",
            "source of the kernels: patches of the high tier; or means, and no pixel is sent",
            ("patches", "means"),
        ),
    }
}


class Kernels(NamedTuple):
    """The making of kernels.

    Attributes:
      windows: rows and columns of an image's patches.
      quota: patches that a client sends; 0 if kernels become means.
      high: ``i32[E]``, the ids of the high-resource clients, sorted.
    """

    task: Task
    module: Patches
    windows: tuple[int, int]
    quota: int
    high: np.ndarray

    @property
    def means(self) -> bool:
        """Whether sweeps follow."""
        return not self.quota

    def patches(self, images: Array) -> Array:
        """Returns the patches ``f32[m, H', W', d]`` of images ``f32[m, H, W, c]``."""
        return image_patches(images, self.module.size, self.module.norm == "patch")

    def look(self, examples: Examples) -> Array:
        """Returns the patches ``f32[m, H', W', d]`` of examples."""
        return self.patches(self.task.inputs(examples))


class Whitened(NamedTuple):
    """The space of whitened patches, and what become kernels.

    Attributes:
      mean: m, ``f32[d]``.
      whitening: Z, ``f32[d, d]``.
      units: f, ``f32[d, K]``.
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
    high = cohorts.eligible_clients(problem, "high")
    one = jax.tree.map(lambda leaf: leaf[:1], problem.clients.examples)
    height, width = jax.eval_shape(task.inputs, one).shape[1:3]
    windows = height - module.size + 1, width - module.size + 1
    means, once = patches["kernels"] == "means", min(patches["num_rounds"], 1)
    quota = 0 if means else -(-module.kernels // len(high))
    kernels = Kernels(task, module, windows, quota, high)

    def phase(name: str, rounds: int, client: Client, set_kernels, init=no_state) -> Phase:
        # Patches cost as much as a few percent of a forward pass: none is counted.
        group = cohorts.make_group(problem, client, features.passes(0), steps.HIGH_TIER)
        server = assign(partial(set_kernels, kernels), init=init)
        return Phase(name, rounds, (group,), server, evaluated=None)

    drawn = Client(partial(_update, kernels), partial(_decode, kernels), one_model=True)
    summed = Client(partial(_assign, kernels), lambda message, *_: message, one_model=True)
    begin = partial(_start, kernels)
    return (
        phase("patches", patches["num_rounds"], drawn, _set_kernels, begin if means else no_state),
        *([phase("means", SWEEPS * once, summed, _move_kernels, begin)] if means else []),
        *(kernel_network.phases(problem, NETWORK, once) if module.network else ()),
    )


def _start(kernels: Kernels, params: Params, before: PyTree) -> Whitened:
    """Returns the space before any round, or that of the phase before."""
    if isinstance(before, Whitened):
        return before
    *sides, count = params[FILTERS]["kernel"].shape
    dim = math.prod(sides)
    return Whitened(jnp.zeros(dim), jnp.zeros((dim, dim)), jnp.zeros((dim, count)))


def _update(kernels: Kernels, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    found = window_sums.moments(kernels.look, batch)
    chosen = _random_patches(kernels, batch, keys.stream(own.client, "patches"))
    return features.result(batch, (*found, chosen))


def _random_patches(kernels: Kernels, batch: ClientBatch, key: Array) -> Array:
    """Returns ``f32[quota, d]``, random patches of a client's images."""
    which, where = jax.random.split(key)
    held, size = jnp.maximum(jnp.sum(batch.mask), 1), kernels.module.size
    rows = jax.random.randint(which, (kernels.quota,), 0, held)
    images = kernels.task.inputs(jax.tree.map(lambda leaf: leaf[rows], batch.examples))
    corners = jax.random.uniform(where, (kernels.quota, 2)) * jnp.array(kernels.windows)[None]

    def cut(image, corner):
        start = (corner[0], corner[1], jnp.int32(0))
        return jax.lax.dynamic_slice(image, start, (size, size, image.shape[-1]))

    found = kernels.patches(jax.vmap(cut)(images, corners.astype(jnp.int32)))
    return found.reshape(kernels.quota, found.shape[-1])


def _decode(kernels: Kernels, message: PyTree, state: ServerState, own: Keys) -> PyTree:
    """Returns a client's sums, and its patches in their place among all that become kernels."""
    *sums, chosen = message
    slots = jnp.zeros((kernels.module.kernels if kernels.quota else 0, chosen.shape[1]))
    first = kernels.quota * jnp.searchsorted(jnp.asarray(kernels.high), own.client_id)
    places = first + jnp.arange(kernels.quota)
    return *sums, slots.at[places].set(chosen, mode="drop")


def _set_kernels(kernels: Kernels, reduced: PyTree, state: ServerState, of_round: Keys):
    *sums, slots = reduced
    found, count = WindowMoments(*sums), kernels.module.kernels
    mean, covariance = window_sums.mean_and_covariance(found, math.prod(kernels.windows))
    variances, vectors = jnp.linalg.eigh(covariance)
    variances = jnp.maximum(variances, 0)
    scaled = vectors * jax.lax.rsqrt(variances + _FLOOR)[None]
    whitening = closed_form.product(scaled, vectors.T)
    if kernels.quota:
        chosen = slots - mean[None]
    else:
        key = keys.stream(of_round.round, "patches")
        drawn = jax.random.normal(key, (count, len(mean))) * jnp.sqrt(variances)[None]
        chosen = closed_form.product(drawn, vectors.T)
    space, ready = Whitened(mean, whitening, chosen.T), found.images > 0
    space = space._replace(units=space.of_centred(chosen).T)
    params = _with_kernels(state.params, space, ready)
    if not kernels.means:
        return params, state.strategy_state
    return params, jax.tree.map(lambda n, o: jnp.where(ready, n, o), space, state.strategy_state)


def _with_kernels(params: Params, space: Whitened, ready: Array) -> Params:
    """Returns parameters with kernels ``Z f``, where ``ready``."""
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

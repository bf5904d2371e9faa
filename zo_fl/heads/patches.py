"""Features from second moments: the kernels of the model ``patches``, set by the high tier.

    client j:  sum p, sum p p^T over all its image patches p; with kernels = "patches" some of them
    server:    mean m, covariance C = V diag(w) V^T, whitening Z = V diag((w + 0.1)^-1/2) V^T
               f = (p - m) Z / |(p - m) Z|,   kernel Z f,   bias -m Z f

``kernels = "patches"``: p are patches of the high tier's images. ``"gaussian"``: p are drawn from
a Gaussian of mean m and covariance C by a key, and no pixel leaves a client. Low-resource clients
take no part; they receive the kernels with the model.

Sources: Coates and Ng 2011; Thiry et al. (arXiv 2101.07528).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import keys
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.phase import Participation, Phase, Problem, eligible_clients, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.task import Task
from zo_fl.engine.types import Array, ClientBatch, ClientResult, ServerState
from zo_fl.heads import closed_form
from zo_fl.heads.features import weight
from zo_fl.models.patches import FILTERS, image_patches

KERNELS = ("patches", "gaussian")
_FLOOR = 0.1  # added to variances along the principal directions of patches
_IMAGES = 32  # whose patches are held at once

BLOCKS: dict[str, Block] = {
    "patches": {
        "num_rounds": Field(1, "rounds; one does", at_least=0),
        "kernels": Field(
            "patches", "of the high tier's images, or gaussian: no pixel is sent", KERNELS
        ),
    }
}


def phases(problem: Problem, *, patches: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase that sets the kernels; ``patches`` is the config block.

    Raises:
      ConfigError: the model has no patches.
    """
    task = problem.task
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    if FILTERS not in params:
        raise ConfigError(
            "patches sets the kernels of a model of image patches, and this model has none; set "
            "config.model.name='patches'"
        )
    size, _, channels, count = params[FILTERS]["kernel"].shape
    dim = size * size * channels
    high = eligible_clients(problem, "high")
    one = jax.tree.map(lambda leaf: leaf[:1], problem.clients.examples)
    image_shape = jax.eval_shape(task.inputs, one).shape
    quota = -(-count // len(high)) if patches["kernels"] == "patches" else 0
    place = np.zeros(len(problem.clients.client_sizes), np.int32)
    place[high] = np.arange(len(high))
    contrast = getattr(task.module, "norm", "none") == "patch"

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
        total, gram = _moments(task, batch, size, contrast)
        chosen = _drawn(task, batch, keys.stream(key, "patches"), size, quota, contrast)
        message = total, gram, jnp.sum(batch.mask).astype(jnp.float32), chosen
        return ClientResult(message, weight(batch, message), {}, {})

    def decode(message, client_id, state: ServerState, run_key):
        del state, run_key
        total, gram, images, chosen = message
        slots = jnp.zeros((len(high), quota, dim)).at[jnp.asarray(place)[client_id]].set(chosen)
        return total, gram, images, slots

    def assign(reduced, state: ServerState, run_key):
        total, gram, images, slots = reduced
        height, width = (side - size + 1 for side in image_shape[1:3])
        patches_seen = jnp.maximum(images * height * width, 1)
        mean = total / patches_seen
        covariance = closed_form.unpack(gram, dim) / patches_seen - jnp.outer(mean, mean)
        variances, vectors = jnp.linalg.eigh(covariance)
        variances = jnp.maximum(variances, 0)
        whitening = closed_form.full_product(
            vectors * jax.lax.rsqrt(variances + _FLOOR)[None], vectors.T
        )
        if quota:
            chosen = slots.reshape(-1, dim)[:count] - mean[None]
        else:
            key = keys.stream(keys.round_key(run_key, state.round_idx), "patches")
            drawn = jax.random.normal(key, (count, dim)) * jnp.sqrt(variances)[None]
            chosen = closed_form.full_product(drawn, vectors.T)
        white = closed_form.full_product(chosen, whitening)
        white = white / jnp.maximum(jnp.linalg.norm(white, axis=1, keepdims=True), 1e-6)
        kernel = closed_form.full_product(whitening, white.T)
        filters = {
            "kernel": kernel.reshape(size, size, channels, count),
            "bias": -closed_form.full_product(mean[None], kernel)[0],
        }
        old = state.params[FILTERS]
        filters = jax.tree.map(lambda new, old: jnp.where(images > 0, new, old), filters, old)
        return state.params | {FILTERS: filters}, state.strategy_state

    strategy = ClientStrategy(client_update, decode, one_model=True)
    # Patches cost about as much as a few percent of a forward pass: no pass is counted.
    group = make_group(
        problem, strategy, lambda clients, examples: 0.0, Participation(tiers="high")
    )
    aggregation = Aggregation(reduce="sum", assign=assign)
    phase = Phase("patches", patches["num_rounds"], (group,), aggregation, None, prepares=True)
    return (phase,)


def _moments(task: Task, batch: ClientBatch, size: int, contrast: bool) -> tuple[Array, Array]:
    """Returns ``(sum p, packed sum p p^T)`` of all patches of a client's images."""
    count = batch.mask.shape[0]
    rows = min(_IMAGES, max(count, 1))

    def cut(leaf):
        padded = jnp.pad(leaf, [(0, -count % rows)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, rows, *leaf.shape[1:])

    def body(sums, part):
        examples, mask = part
        seen = image_patches(task.inputs(examples), size, contrast)
        seen = jnp.where(mask[:, None, None, None], seen, 0.0).reshape(-1, seen.shape[-1])
        return (sums[0] + seen.sum(0), sums[1] + closed_form.packed_product(seen)), None

    parts = jax.tree.map(cut, (batch.examples, batch.mask))
    first = jax.tree.map(lambda leaf: leaf[0], parts[0])
    dim = size * size * jax.eval_shape(task.inputs, first).shape[-1]
    zeros = jnp.zeros(dim), jnp.zeros(dim * (dim + 1) // 2)
    return jax.lax.scan(body, zeros, parts)[0]


def _drawn(
    task: Task, batch: ClientBatch, key: Array, size: int, quota: int, contrast: bool
) -> Array:
    """Returns ``f32[quota, size * size * c]``, random patches of a client's images."""
    which, where = jax.random.split(key)
    held = jnp.maximum(jnp.sum(batch.mask), 1)
    images = task.inputs(
        jax.tree.map(
            lambda leaf: leaf[jax.random.randint(which, (quota,), 0, held)], batch.examples
        )
    )
    _, height, width, channels = images.shape
    room = jnp.array([height - size + 1, width - size + 1])
    corners = jax.random.uniform(where, (quota, 2)) * room[None]

    def cut(image, corner):
        start = (corner[0], corner[1], jnp.int32(0))
        return jax.lax.dynamic_slice(image, start, (size, size, channels))

    found = jax.vmap(cut)(images, corners.astype(jnp.int32))
    return image_patches(found, size, contrast).reshape(quota, size * size * channels)

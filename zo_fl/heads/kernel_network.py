"""Whitening and kernels of ``models/kernel_network.py``, set by sums of the high tier.

    whitening   client: sum p, sum p p^T over all 9x9 windows p of its images
                server: mean m, covariance V diag(w) V^T; of the whitening V diag((w + 0.01)^-1/2)
                V^T of a window the columns of its middle pixel
    each layer  spherical k-means, a sweep a round:
                client: 24 random windows of each of its images, divided by their norm; for each
                kernel z_k the sum and the number of those whose largest cosine is that with z_k
                server: z_k = sum / |sum|; a kernel without windows copies one that has many; both
                are disturbed, and share these windows at the next sweep.
                At the end kappa(Z^T Z)^-1/2.

Clients send sums alone: no pixel, no window. Low-resource clients take no part; they receive the
kernels with the model.

Sources: Mairal (arXiv 1605.06265) for k-means of normalized windows; Coates and Ng 2012 for
spherical k-means by sums.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import cohorts, keys
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Examples, Params, Task
from zo_fl.heads import closed_form, features, steps, window_sums
from zo_fl.heads.window_sums import WindowMoments
from zo_fl.models import kernel_network as model

SWEEPS = 12
_FLOOR = 0.01  # added to variances along the principal directions of 9x9 windows
_EACH = 24  # windows of an image that a sweep looks at
_DISTURBANCE = 0.1  # norm of what is added to copies, beside a kernel's 1
_LEAST = 1e-4  # added to eigenvalues of what kernels are to each other


class Part(NamedTuple):
    """A part of the network.

    Attributes:
      name: as ``kernel_network.seen_by`` takes it.
      inside: the network's name among the model's parameters.
    """

    task: Task
    name: str
    inside: str

    def windows(self, params: Params, examples: Examples) -> Array:
        """Returns the windows ``f32[m, H', W', d]`` that the part looks at."""
        return model.seen_by(self.name, params[self.inside], self.task.inputs(examples))

    def put(self, params: Params, values: dict[str, Array], ready: Array) -> Params:
        """Returns parameters with the part's values, where ``ready``."""
        network = params[self.inside]
        new = jax.tree.map(lambda n, o: jnp.where(ready, n, o), values, network[self.name])
        return params | {self.inside: network | {self.name: new}}


class Assigned(NamedTuple):
    """The windows of each kernel.

    Attributes:
      sums: ``f32[d, K]``, of windows of norm 1.
      counts: ``f32[K]``.
    """

    sums: Array
    counts: Array


def phases(problem: Problem, inside: str, rounds: int) -> tuple[Phase, ...]:
    """Returns the phases that set a network; ``inside`` is its name among the parameters.

    ``rounds`` is 1, or 0 for phases without rounds.

    Raises:
      ConfigError: images are smaller than the windows that whiten them.
    """
    height, width = jax.eval_shape(problem.task.inputs, problem.task.blank()).shape[1:3]
    if min(height, width) < model.WHITENING:
        raise ConfigError(
            f"config.model.network is for images of {model.WHITENING}x{model.WHITENING} pixels or "
            f"more, and these have {height}x{width}; set it to 'none', or change config.data.name"
        )

    def phase(name: str, rounds: int, update, set_values, passes: float = 0.0) -> Phase:
        part = Part(problem.task, name, inside)
        client = Client(partial(update, part), lambda message, *_: message, one_model=True)
        group = cohorts.make_group(problem, client, features.passes(passes), steps.HIGH_TIER)
        # The strategy state counts the rounds that are left.
        server = assign(partial(set_values, part), init=lambda *_: jnp.int32(rounds))
        return Phase(name, rounds, (group,), server, evaluated=None)

    # A layer's sweeps cost about as much as a forward pass.
    sweeps = partial(phase, rounds=SWEEPS * rounds, update=_assign, set_values=_set_kernels)
    return (
        phase("whitening", rounds, _moments, _set_whitening),
        *(sweeps(name, passes=1 / SWEEPS) for name in model.LAYERS),
    )


def _moments(part: Part, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    found = window_sums.moments(partial(part.windows, state.params), batch)
    return features.result(batch, found)


def _set_whitening(part: Part, found: WindowMoments, state: ServerState, of_round: Keys):
    example = jax.eval_shape(part.windows, state.params, part.task.blank())
    _, height, width, dim = example.shape
    mean, covariance = window_sums.mean_and_covariance(found, height * width)
    variances, vectors = jnp.linalg.eigh(covariance)
    scaled = vectors * jax.lax.rsqrt(jnp.maximum(variances, 0) + _FLOOR)[None]
    channels = dim // model.WHITENING**2
    middle = slice((dim - channels) // 2, (dim + channels) // 2)
    kernel = closed_form.product(scaled, vectors[middle].T)
    values = {"kernel": kernel, "bias": -closed_form.product(mean[None], kernel)[0]}
    return part.put(state.params, values, found.images > 0), state.strategy_state - 1


def _assign(part: Part, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    kernel = state.params[part.inside][part.name]["kernel"]
    dim, count = kernel.shape

    def add(before: Assigned, seen: Array, mask: Array, index: Array) -> Assigned:
        key = jax.random.fold_in(keys.stream(own.client, part.name), index)
        seen = seen.reshape(len(seen), -1, dim)
        places = jax.random.randint(key, (len(seen), _EACH, 1), 0, seen.shape[1])
        some = jnp.take_along_axis(seen, places, axis=1).reshape(-1, dim)
        some = model.unit_columns(some.T).T
        nearest = jnp.argmax(some @ kernel, axis=1)
        chosen = jax.nn.one_hot(nearest, count) * jnp.repeat(mask, _EACH)[:, None]
        sums = closed_form.product(some.T, chosen)
        return Assigned(before.sums + sums, before.counts + chosen.sum(0))

    zeros = Assigned(jnp.zeros((dim, count)), jnp.zeros(count))
    found = window_sums.over_images(partial(part.windows, state.params), batch, add, zeros)
    return features.result(batch, found)


def _set_kernels(part: Part, found: Assigned, state: ServerState, of_round: Keys):
    old, left = state.params[part.inside][part.name], state.strategy_state - 1
    kernel = moved(found, old["kernel"], of_round.round)
    mixed = jax.lax.cond(left == 0, mix, lambda kernel: old["mix"], kernel)
    values = {"kernel": kernel, "mix": mixed}
    return part.put(state.params, values, found.counts.sum() > 0), left


def moved(found: Assigned, kernel: Array, key: Array) -> Array:
    """Returns the kernels ``f32[d, K]`` after a sweep, from those before."""
    counts, empty = found.counts, found.counts == 0
    new = jnp.where(empty[None], kernel, model.unit_columns(found.sums))
    # The i-th of E empty ones copies the kernel of the window at (i - 1/2) / E of all windows.
    share = (jnp.cumsum(empty) - 0.5) / jnp.maximum(empty.sum(), 1)
    copied = jnp.searchsorted(jnp.cumsum(counts), share * counts.sum())
    copied = jnp.where(empty, copied, jnp.arange(len(counts)))
    twice = jnp.zeros_like(counts).at[copied].add(1.0)[copied] > 1
    away = model.unit_columns(jax.random.normal(keys.stream(key, "copies"), kernel.shape))
    return model.unit_columns(new[:, copied] + jnp.where(twice, _DISTURBANCE, 0.0)[None] * away)


def mix(kernel: Array) -> Array:
    """Returns ``kappa(Z^T Z)^-1/2`` of kernels Z, ``f32[K, K]`` from ``f32[d, K]``."""
    values, vectors = jnp.linalg.eigh(model.kappa(closed_form.product(kernel.T, kernel)))
    scaled = vectors * jax.lax.rsqrt(jnp.maximum(values, 0) + _LEAST)[None]
    return closed_form.product(scaled, vectors.T)

"""Whitening and kernels of ``models/kernel_network.py``, set by sums of the high tier.

    whitening   client: sum p, sum p p^T over all 9x9 windows p of its images
                server: mean m, covariance V diag(w) V^T; of the whitening V diag((w + 0.01)^-1/2)
                V^T of a window the columns of its middle pixel
    directions  client: sum p p^T over all windows p of the second layer
                server: eigenvectors of the largest eigenvalues
    each layer  spherical_means of its windows; at the end kappa(Z^T Z)^-1/2

No pixel and no window leaves a client. Low-resource clients take no part; they receive the kernels
with the model.

Source: Mairal (arXiv 1605.06265), where the same k-means is of windows in one place.
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
from zo_fl.heads import closed_form, features, spherical_means, steps, window_sums
from zo_fl.heads.spherical_means import Assigned
from zo_fl.heads.window_sums import WindowMoments
from zo_fl.models import kernel_network as model

_FLOOR = 0.01  # added to variances along the principal directions of 9x9 windows
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


def phases(problem: Problem, inside: str, sweeps: int) -> tuple[Phase, ...]:
    """Returns the phases that set a network; ``inside`` is its name among the parameters.

    ``sweeps`` of k-means, a round each, set a layer; 0 skips all phases.

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

    def layer(name: str) -> Phase:  # twelve sweeps cost about as much as a forward pass
        return phase(name, sweeps, _assign, _set_kernels, passes=1 / 12)

    once = min(sweeps, 1)
    return (
        phase("whitening", once, _moments, _set_whitening),
        layer("layer1"),
        phase("directions", once, _moments, _set_directions, passes=1.0),
        layer("layer2"),
    )


def _moments(part: Part, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    found = window_sums.moments(partial(part.windows, state.params), batch)
    return features.result(batch, found)


def _mean_and_covariance(part: Part, found: WindowMoments, params: Params) -> tuple[Array, Array]:
    _, height, width, _ = jax.eval_shape(part.windows, params, part.task.blank()).shape
    return window_sums.mean_and_covariance(found, height * width)


def _set_whitening(part: Part, found: WindowMoments, state: ServerState, of_round: Keys):
    mean, covariance = _mean_and_covariance(part, found, state.params)
    variances, vectors = jnp.linalg.eigh(covariance)
    scaled = vectors * jax.lax.rsqrt(jnp.maximum(variances, 0) + _FLOOR)[None]
    dim = len(mean)
    channels = dim // model.WHITENING**2
    middle = slice((dim - channels) // 2, (dim + channels) // 2)
    kernel = closed_form.product(scaled, vectors[middle].T)
    values = {"kernel": kernel, "bias": -closed_form.product(mean[None], kernel)[0]}
    return part.put(state.params, values, found.images > 0), state.strategy_state - 1


def _set_directions(part: Part, found: WindowMoments, state: ServerState, of_round: Keys):
    mean, covariance = _mean_and_covariance(part, found, state.params)
    # From 0, not from their mean: the layer compares directions of windows.
    _, vectors = jnp.linalg.eigh(covariance + jnp.outer(mean, mean))
    values = {"kernel": vectors[:, -model.DIRECTIONS :]}
    return part.put(state.params, values, found.images > 0), state.strategy_state - 1


def _assign(part: Part, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    look = partial(part.windows, state.params)
    kernel = state.params[part.inside][part.name]["kernel"]
    key = keys.stream(own.client, part.name)
    return features.result(batch, spherical_means.assign(look, batch, kernel, key))


def _set_kernels(part: Part, found: Assigned, state: ServerState, of_round: Keys):
    old, left = state.params[part.inside][part.name], state.strategy_state - 1
    kernel = spherical_means.moved(found, old["kernel"], of_round.round)
    mixed = jax.lax.cond(left == 0, mix, lambda kernel: old["mix"], kernel)
    values = {"kernel": kernel, "mix": mixed}
    return part.put(state.params, values, found.counts.sum() > 0), left


def mix(kernel: Array) -> Array:
    """Returns ``kappa(Z^T Z)^-1/2`` of kernels Z, ``f32[K, K]`` from ``f32[d, K]``."""
    values, vectors = jnp.linalg.eigh(model.kappa(closed_form.product(kernel.T, kernel)))
    scaled = vectors * jax.lax.rsqrt(jnp.maximum(values, 0) + _LEAST)[None]
    return closed_form.product(scaled, vectors.T)

"""The server's step: from the update of a round to the next parameters.

With the pseudo-gradient g, the mean of ``before - after`` or an estimate of a gradient:

    sgd         w <- w - lr g                                     FedAvg at lr = 1
    momentum    m <- b1 m + g,             w <- w - lr m          FedAvgM
    normalized  w <- w - lr g / |g|                               lr is how far a round moves
    adam        v <- b2 v + (1 - b2) g^2
    yogi        v <- v - (1 - b2) g^2 sign(v - g^2)
    adagrad     v <- v + g^2

and for the last three  m <- b1 m + (1 - b1) g,  w <- w - lr m / (sqrt(v) + eps), with m divided by
1 - b1^t and (not for adagrad, whose v is a sum) v by 1 - b2^t, as in PyTorch's and Keras's Adam and
so in the ZOWarmUp author's code; the FedOpt paper leaves that out. optax has adam and yogi, but an
adagrad without b1; one formula for the three is shorter than the exception.

Source: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine.algorithm import Reducer, Server, ServerState
from zo_fl.engine.fields import Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, Params, PyTree

B1, B2, EPS = 0.9, 0.999, 1e-8
FIELD = Field("sgd", "server optimizer", lambda: OPTIMIZERS)


def no_state(params: Params, before: PyTree) -> PyTree:
    """Returns the strategy state of a method that remembers nothing."""
    return ()


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Callable[[PyTree, ServerState, Keys], tuple[Params, PyTree]] | None = None,
    *,
    init: Callable[[Params, PyTree], PyTree] = no_state,
    statistics: Callable | None = None,
) -> Server:
    """Returns a server that lets an optimizer descend along the mean update.

    Args:
      optimizer: the server's.
      gradient: ``(mean, state, keys) -> (pseudo-gradient, strategy_state)``; the mean itself where
        it is left out.
      init: ``(params, strategy state of the phase before) -> strategy_state``.
      statistics: see ``Server``.
    """

    def step(reduced, state: ServerState, keys: Keys):
        found = (reduced, state.strategy_state)
        direction, strategy_state = gradient(reduced, state, keys) if gradient else found
        updates, opt_state = optimizer.update(direction, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state, strategy_state

    server = Server(lambda params, before: (optimizer.init(params), init(params, before)), step)
    return server if statistics is None else server._replace(statistics=statistics)


def assign(
    function: Callable[[PyTree, ServerState, Keys], tuple[Params, PyTree]],
    *,
    init: Callable[[Params, PyTree], PyTree] = no_state,
) -> Server:
    """Returns a server that *sets* the parameters, from the plain sum of the updates.

    Args:
      function: ``(sum, state, keys) -> (params, strategy_state)``.
      init: as for ``descend``.
    """

    def step(reduced, state: ServerState, keys: Keys):
        params, strategy_state = function(reduced, state, keys)
        return params, state.opt_state, strategy_state

    return Server(lambda params, before: ((), init(params, before)), step, Reducer(is_sum=True))


def optimizer(
    name: str, lr: float | Array, *, b2: float = B2, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Returns the server optimizer ``name`` of ``OPTIMIZERS``.

    Args:
      name: see the module docstring.
      lr: server learning rate, >= 0 (0 keeps the parameters: a control).
      b2: decay of the second moment.
      weight_decay: decoupled: each step also subtracts ``lr * weight_decay * w``.
    """
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(OPTIMIZERS[name](b2), decay, optax.scale(-lr))


class AdaptiveState(NamedTuple):
    """First and second moments, shaped like the parameters, and ``i32[]`` steps taken."""

    mean: Params
    second: Params
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def _scale_by_moments(
    second_moment: Callable[[Array, Array], Array], b2: float | None
) -> optax.GradientTransformation:
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdaptiveState(zeros, jax.tree.map(jnp.zeros_like, params), jnp.int32(0))

    def update(updates, state, params=None):
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, state.mean, updates)
        second = jax.tree.map(lambda v, g: second_moment(v, g * g), state.second, updates)
        m_scale = 1 / (1 - B1**count)
        v_scale = 1.0 if b2 is None else 1 / (1 - b2**count)
        step = jax.tree.map(lambda m, v: m_scale * m / (jnp.sqrt(v_scale * v) + EPS), mean, second)
        return step, AdaptiveState(mean, second, count)

    return optax.GradientTransformation(init, update)


def _adam(b2: float) -> optax.GradientTransformation:
    return _scale_by_moments(lambda v, g2: b2 * v + (1 - b2) * g2, b2)


def _yogi(b2: float) -> optax.GradientTransformation:
    return _scale_by_moments(lambda v, g2: v - (1 - b2) * g2 * jnp.sign(v - g2), b2)


# name -> the direction of a step, given b2
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": lambda b2: optax.identity(),
    "momentum": lambda b2: optax.trace(B1),
    "normalized": lambda b2: optax.normalize_by_update_norm(),
    "adam": _adam,
    "yogi": _yogi,
    "adagrad": lambda b2: _scale_by_moments(lambda v, g2: v + g2, None),
}

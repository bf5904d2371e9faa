"""The server's step: from the update of a round to the next parameters.

With the pseudo-gradient g, the mean of ``before - after`` or an estimate of a gradient:

    sgd         w <- w - lr g                                     FedAvg at lr = 1
    momentum    m <- b1 m + g,             w <- w - lr m          FedAvgM
    normalized  w <- w - lr g / |g|                               lr is how far a round moves
    adam, yogi, adagrad                                           see ``adaptive``
"""

from collections.abc import Callable

import optax

from zo_fl.engine import adaptive
from zo_fl.engine.algorithm import Reducer, Server, ServerState
from zo_fl.engine.fields import Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, Params, PyTree

B2 = 0.999
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
      gradient: ``(mean, state, keys) -> (pseudo-gradient, strategy_state)``; None for the mean.
      init: ``(params, strategy state of the phase before) -> strategy_state``.
      statistics: see ``Server``.
    """

    def step(reduced, state: ServerState, keys: Keys):
        direction, strategy_state = reduced, state.strategy_state
        if gradient is not None:
            direction, strategy_state = gradient(reduced, state, keys)
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

    ``function`` is ``(sum, state, keys) -> (params, strategy_state)``, ``init`` as in ``descend``.
    """

    def step(reduced, state: ServerState, keys: Keys):
        params, strategy_state = function(reduced, state, keys)
        return params, state.opt_state, strategy_state

    return Server(lambda params, before: ((), init(params, before)), step, Reducer(is_sum=True))


def optimizer(
    name: str, lr: float | Array, *, b2: float = B2, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Returns a server optimizer.

    Args:
      name: of ``OPTIMIZERS``.
      lr: server learning rate, >= 0 (0 keeps the parameters: a control).
      b2: decay of the second moment.
      weight_decay: decoupled: each step also subtracts ``lr * weight_decay * w``.
    """
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(OPTIMIZERS[name](b2), decay, optax.scale(-lr))


# name -> the direction of a step, given b2
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": lambda b2: optax.identity(),
    "momentum": lambda b2: optax.trace(adaptive.B1),
    "normalized": lambda b2: optax.normalize_by_update_norm(),
    "adam": adaptive.adam,
    "yogi": adaptive.yogi,
    "adagrad": adaptive.adagrad,
}

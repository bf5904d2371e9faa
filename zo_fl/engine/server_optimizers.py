"""Server optimizers of FedOpt, as optax transformations with every constant explicit.

With the pseudo-gradient g_t = sum_i p_i (w_t - w_i):

    sgd       w <- w - lr g                                         FedAvg at lr = 1
    momentum  m <- b1 m + g,             w <- w - lr m              FedAvgM
    adam      v <- b2 v + (1 - b2) g^2
    yogi      v <- v - (1 - b2) g^2 sign(v - g^2)
    adagrad   v <- v + g^2

and for the last three  m <- b1 m + (1 - b1) g,  w <- w - lr m / (sqrt(v) + eps).

``weight_decay`` wd is decoupled: each of them also subtracts lr * wd * w.

``scale`` changes the length of the step s that lr multiplies (g or m, or m / (sqrt(v) + eps)):

    norm      s / |s|: lr is how far a round moves the model
    trust     for each array, s |w| / |s| (LARS, LAMB)

The norm of a zeroth-order update is that of its scalars, |g|^2 = d tau^2 sum c^2, for directions in
many dimensions are orthogonal: ``norm`` divides by the spread of the loss differences, as FZOO does
(arXiv 2506.09034).

``bias_correction`` divides m by 1 - b1^t and (not for adagrad, whose v is a sum) v by 1 - b2^t:
off in the FedOpt paper, on in PyTorch's and Keras's Adam and so in the ZOWarmUp author's code.
optax has adam and yogi of its own, always corrected, and an adagrad without b1; one formula for the
three is shorter than four exceptions.

Source: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2; SPEC values as in ``configs/base.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine.fields import Block, Field
from zo_fl.engine.types import Array, Params


class Options(NamedTuple):
    """What an optimizer may read of its config block; see ``create``."""

    b1: float
    b2: float
    eps: float
    initial_accumulator: float
    bias_correction: bool


BLOCK: Block = {
    "name": Field("sgd", "the optimizer", lambda: OPTIMIZERS),
    "b1": Field(0.9, "decay of the first moment, momentum", at_least=0, below=1),
    "b2": Field(0.999, "decay of the second moment", at_least=0, below=1),
    "eps": Field(1e-8, "adaptivity", at_least=0),
    "initial_accumulator": Field(0.0, "second moment at the start", at_least=0),
    "bias_correction": Field(True, "of adaptive optimizers' moments"),
    "weight_decay": Field(0.0, "decoupled", at_least=0),
    "scale": Field("none", "of a step: its norm, or trust ratios", lambda: SCALES),
}


class AdaptiveState(NamedTuple):
    """First and second moments, shaped like the parameters, and ``i32[]`` steps taken."""

    mean: Params
    second: Params
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def create(
    *,
    name: str,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    initial_accumulator: float,
    bias_correction: bool,
    weight_decay: float = 0.0,
    scale: str = "none",
) -> optax.GradientTransformation:
    """Returns the server optimizer ``name`` (module docstring) as an optax transformation.

    Args:
      name: one of ``OPTIMIZERS``.
      lr: server learning rate, >= 0 (0 keeps the parameters: a control).
      b1: decay of the first moment; momentum's coefficient.
      b2: decay of the second moment (adam, yogi).
      eps: adaptivity, the paper's tau; added outside the root.
      initial_accumulator: v at the start; the paper asks for at least eps^2.
      bias_correction: see the module docstring.
      weight_decay: decoupled, >= 0. Rounds still replay from scalars; FedKSeed's sum would not.
      scale: one of ``SCALES``.
    """
    options = Options(b1, b2, eps, initial_accumulator, bias_correction)
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(OPTIMIZERS[name](options), *SCALES[scale](), decay, optax.scale(-lr))


def _scale_by_moments(
    second_moment: Callable[[Array, Array, float], Array], options: Options, correct_second: bool
) -> optax.GradientTransformation:
    b1, b2, eps, initial_accumulator, bias_correction = options

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        start = jax.tree.map(lambda leaf: jnp.full_like(leaf, initial_accumulator), params)
        return AdaptiveState(zeros, start, jnp.int32(0))

    def update(updates, state, params=None):
        del params
        gradient = updates
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, gradient)
        second = jax.tree.map(lambda v, g: second_moment(v, g * g, b2), state.second, gradient)
        m_scale = 1 / (1 - b1**count) if bias_correction else 1.0
        v_scale = 1 / (1 - b2**count) if bias_correction and correct_second else 1.0
        step = jax.tree.map(lambda m, v: m_scale * m / (jnp.sqrt(v_scale * v) + eps), mean, second)
        return step, AdaptiveState(mean, second, count)

    return optax.GradientTransformation(init, update)


def _momentum(options: Options) -> optax.GradientTransformation:
    return optax.trace(options.b1)


def _adam(options: Options) -> optax.GradientTransformation:
    return _scale_by_moments(lambda v, g2, b2: b2 * v + (1 - b2) * g2, options, True)


def _yogi(options: Options) -> optax.GradientTransformation:
    return _scale_by_moments(lambda v, g2, b2: v - (1 - b2) * g2 * jnp.sign(v - g2), options, True)


def _adagrad(options: Options) -> optax.GradientTransformation:
    return _scale_by_moments(lambda v, g2, b2: v + g2, options, False)


# name -> the direction of a step, given the gradient; ``create`` adds decay and step size
OPTIMIZERS: dict[str, Callable[[Options], optax.GradientTransformation]] = {
    "sgd": lambda options: optax.identity(),
    "momentum": _momentum,
    "adam": _adam,
    "yogi": _yogi,
    "adagrad": _adagrad,
}

# name -> what is done to the direction of a step; nothing at all for none
SCALES: dict[str, Callable[[], tuple[optax.GradientTransformation, ...]]] = {
    "none": tuple,
    "norm": lambda: (optax.normalize_by_update_norm(),),
    "trust": lambda: (optax.scale_by_trust_ratio(),),
}

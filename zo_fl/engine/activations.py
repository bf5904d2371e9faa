"""Activations inside a model, for methods that treat the last layer apart."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import precision as precisions
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Array, Examples, ModelState, Params, Task


def features(
    task: Task,
    params: Params,
    model_state: ModelState,
    examples: Examples,
    mask: Array | np.ndarray,
    layers: tuple[str, ...] = (),
) -> Array:
    """Returns ``f32[n, d]``, the input of the last layer, or the outputs of other layers.

    Args:
      task: the learning problem; its model uses running statistics.
      params: of the model.
      model_state: running statistics, or ``{}``.
      examples: leaves ``[n, ...]``.
      mask: ``bool[n]``, True for a real example.
      layers: paths of submodules (``stage1_block2``). Their outputs, averaged over all axes but the
        first and the last, are put side by side; the last layer contributes its input.

    Raises:
      ConfigError: the model has no such submodule.
    """
    layers = layers or (task.head,)
    found: dict[str, Array] = {}

    def keep(call, args, kwargs, context):
        name = "/".join(context.module.path)
        wanted = name in layers and context.method_name == "__call__"
        if wanted and name == task.head:
            found.setdefault(name, precisions.widen(args[0]))
        output = call(*args, **kwargs)
        if wanted and name != task.head:
            space = tuple(range(1, output.ndim - 1))
            found[name] = jnp.mean(precisions.widen(output), axis=space)
        return output

    with nn.intercept_methods(keep):
        task.logits(params, model_state, examples, mask, False)
    for name in layers:
        if name not in found:
            raise ConfigError(f"the model has no submodule {name!r}; change `layers`")
    return jnp.concatenate([found[name] for name in layers], axis=-1)

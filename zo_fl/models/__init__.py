"""Models by name: Linen modules that map images to logits.

Call a module as ``module.apply(variables, x, train=..., mask=...)``: ``train`` is True for batch
statistics and False for running ones, ``mask`` (``bool[n]``) is False for examples that batch
statistics leave out. Its variables are the collection ``params``, and ``batch_stats`` if its norm
is ``batch``.
"""

import functools

import flax.linen as nn

from zo_fl.engine import precision
from zo_fl.engine.fields import Block, ConfigError, Field
from zo_fl.models.layers import NORMS
from zo_fl.models.patches import Patches
from zo_fl.models.resnet import ResNet18
from zo_fl.models.small import CNN, MLP, CNNLarge
from zo_fl.models.vit import ViT

_CONVOLUTIONAL = ("batch", "group", "none")

# name -> (module, norms that it can have)
MODELS = {
    "resnet18": (ResNet18, _CONVOLUTIONAL),
    "preact_resnet18": (functools.partial(ResNet18, preact=True), _CONVOLUTIONAL),
    "vit": (ViT, ("layer",)),
    "cnn": (CNN, _CONVOLUTIONAL),
    "cnn_large": (CNNLarge, ("none",)),
    "mlp": (MLP, ("none",)),
    "patches": (Patches, ("patch", "none")),
}
DENSE = ("mlp",)  # without convolutions: on CPUs too, several runs as one program are quicker
_STAGED = ("resnet18", "preact_resnet18", "cnn")
# option -> models that have it
_OPTIONS = {
    "norm": (*_STAGED, "patches"),
    "conv": (*_STAGED, "cnn_large"),
    "stages": _STAGED,
    "width": (*_STAGED, *DENSE),
    "share": (*_STAGED, *DENSE),
    "kernels": ("patches",),
    "mirror": ("patches",),
    "network": ("patches",),
}

BLOCK: Block = {
    "name": Field("resnet18", "model to train", lambda: MODELS),
    "norm": Field("batch", "normalization; layer is for vit, patch is for patches", NORMS),
    "width": Field(
        1.0, "factor of the hidden channels, in ResNets, cnn and mlp", above=0, at_most=4
    ),
    "stages": Field(False, "pooled outputs of all stages as features, in ResNets and cnn"),
    "kernels": Field(256, "kernels of the model patches; each gives 8 features", at_least=1),
    "mirror": Field(True, "symmetry of the model patches under mirroring, at twice the cost"),
    "network": Field(
        0,
        "kernels of a second layer beside patches; each gives 9 features",
        at_least=1,
        zero="none",
    ),
    "precision": Field(
        "float32", "precision of products in features and in evaluation", precision.available
    ),
}


def create(
    *,
    name: str,
    norm: str,
    width: float = 1.0,
    stages: bool = False,
    kernels: int = 256,
    mirror: bool = True,
    network: int = 0,
    num_classes: int,
    conv: str = "auto",
    share: float = 1.0,
) -> nn.Module:
    """Returns a model that is not yet initialized. ``BLOCK`` describes its fields; the task takes
    the field ``precision``.

    Args:
      num_classes: width of the output.
      conv: one of ``conv.IMPLEMENTATIONS``.
      share: HeteroFL's share of the hidden channels; 1 for the whole model. The parameters of a
        sub-model are leading slices of the whole model's. A module's own ``width`` is the product.

    Returns:
      A module with ``(x: f32[n, H, W, c], *, train: bool, mask: bool[n] | None = None) ->
      f32[n, num_classes]``.

    Raises:
      ConfigError: the model cannot have this norm, this width, or stages.
    """
    module, norms = MODELS[name]
    if norm not in norms:
        raise ConfigError(
            f"model {name!r} cannot have norm {norm!r}, allowed for it: {', '.join(norms)};"
            " change config.model.norm or config.model.name"
        )
    if stages and name not in _OPTIONS["stages"]:
        raise ConfigError(
            f"config.model.stages=true is not allowed for model {name!r}, allowed for: "
            f"{', '.join(_OPTIONS['stages'])}"
        )
    if width * share != 1.0 and name not in _OPTIONS["width"]:
        raise ConfigError(
            f"model {name!r} comes in one width, config.model.width or HeteroFL asks for another;"
            f" allowed: {', '.join(_OPTIONS['width'])}; change config.model.name"
        )
    given = dict(norm=norm, conv=conv, stages=stages, kernels=kernels, mirror=mirror)
    given |= dict(width=width * share, share=share, network=network)
    options = {option: value for option, value in given.items() if name in _OPTIONS[option]}
    return module(num_classes=num_classes, **options)

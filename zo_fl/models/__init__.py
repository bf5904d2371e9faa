"""Models by name: Linen modules that map images to logits.

Every module is called as ``module.apply(variables, x, train=..., mask=...)``; it has the collection
``params``, and ``batch_stats`` if and only if its norm is ``batch``.
"""

import functools

import flax.linen as nn

from zo_fl.engine.errors import ConfigError
from zo_fl.engine.fields import Block, Field
from zo_fl.models.conv import IMPLEMENTATIONS
from zo_fl.models.layers import NORMS
from zo_fl.models.patches import Patches
from zo_fl.models.resnet import ResNet18
from zo_fl.models.small import CNN, MLP, CNNLarge
from zo_fl.models.vit import ViT

_CONVOLUTIONAL = ("batch", "group", "none")

_STAGED = ("resnet18", "preact_resnet18", "cnn")
_NARROWABLE = ("resnet18", "preact_resnet18", "cnn", "mlp")

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


BLOCK: Block = {
    "name": Field("resnet18", "the model", lambda: MODELS),
    "norm": Field("batch", "group: 2 groups; layer: vit alone; patch: patches alone", NORMS),
    "conv": Field(
        "auto", "how convolutions are computed; auto = what was best on CPUs", IMPLEMENTATIONS
    ),
    "stages": Field(False, "the head sees all stages, pooled: of resnet18 and cnn"),
    "kernels": Field(256, "of the model patches: 8 features each", at_least=1),
    "patch_size": Field(6, "of the model patches: height and width of a kernel", at_least=1),
    "mirror": Field(
        True, "of the model patches: left and right are the same to it, at twice the cost"
    ),
}


def create(
    *,
    name: str,
    norm: str,
    conv: str = "auto",
    stages: bool = False,
    kernels: int = 256,
    patch_size: int = 6,
    mirror: bool = True,
    num_classes: int,
    width: float = 1.0,
) -> nn.Module:
    """Returns a model that is not yet initialized. Its arguments are the block ``config.model``.

    Args:
      name: a key of ``MODELS``.
      norm: ``batch``, ``group`` (2 groups), ``layer`` or ``none``; not every model has every norm.
      conv: how convolutions are computed, one of ``conv.IMPLEMENTATIONS``.
      stages: whether the head sees the pooled outputs of all stages; ``resnet18`` and ``cnn`` can.
      kernels: of the model ``patches``.
      patch_size: likewise.
      mirror: likewise.
      num_classes: width of the output; the data set's.
      width: share of the hidden channels, rounded up; not 1 for HeteroFL's sub-models, whose
        parameters are leading slices of the whole model's.

    Returns:
      A module with ``(x: f32[n, H, W, c], *, train: bool, mask: bool[n] | None = None) ->
      f32[n, num_classes]``.

    Raises:
      ConfigError: a norm, a width or stages that the model cannot have.
    """
    module, norms = MODELS[name]
    if norm not in norms:
        raise ConfigError(
            f"model {name!r} cannot have norm {norm!r}, allowed for it: {', '.join(norms)};"
            " change config.model.norm or config.model.name"
        )
    if stages and name not in _STAGED:
        raise ConfigError(
            f"config.model.stages=true is not allowed for model {name!r}, allowed for: "
            f"{', '.join(_STAGED)}"
        )
    if stages:
        module = functools.partial(module, stages=True)
    if name == "patches" and width == 1.0:
        module = functools.partial(module, kernels=kernels, size=patch_size, mirror=mirror)
    if width == 1.0:
        return module(num_classes=num_classes, norm=norm, conv=conv)
    if name not in _NARROWABLE:
        raise ConfigError(
            f"model {name!r} has no narrow form, allowed: {', '.join(_NARROWABLE)};"
            " change config.model.name"
        )
    return module(num_classes=num_classes, norm=norm, conv=conv, width=width)

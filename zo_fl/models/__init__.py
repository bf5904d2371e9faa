"""Models by name: Linen modules that map images to logits.

Call a module as ``module.apply(variables, x, train=..., mask=...)``. Its variables are the
collection ``params``, and ``batch_stats`` if its norm is ``batch``.
"""

import functools

import flax.linen as nn

from zo_fl.engine.fields import Block, ConfigError, Field
from zo_fl.models.layers import NORMS
from zo_fl.models.patches import Patches
from zo_fl.models.resnet import ResNet18
from zo_fl.models.small import CNN, MLP, CNNLarge
from zo_fl.models.vit import ViT

_CONVOLUTIONAL = ("batch", "group", "none")
_STAGED = ("resnet18", "preact_resnet18", "cnn")
DENSE = ("mlp",)  # without convolutions: on CPUs too, several runs as one program are quicker
_NARROWABLE = (*_STAGED, *DENSE)

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
    "name": Field("resnet18", "model to train", lambda: MODELS),
    "norm": Field(
        "batch", "normalization: group has 2 groups, layer is for vit, patch is for patches", NORMS
    ),
    "width": Field(
        1.0, "factor of the hidden channels, in ResNets, cnn and mlp", above=0, at_most=4
    ),
    "stages": Field(
        False, "pooled outputs of all stages as input of the last layer, in ResNets and cnn"
    ),
    "kernels": Field(
        256, "number of kernels of the model patches; each gives 8 features", at_least=1
    ),
    "mirror": Field(
        True,
        "symmetry of the model patches: a mirrored image has the same features, at twice the cost",
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
    num_classes: int,
    conv: str = "auto",
    share: float = 1.0,
) -> nn.Module:
    """Returns a model that is not yet initialized.

    Args:
      name: a key of ``MODELS``.
      norm: ``batch``, ``group`` (2 groups), ``layer``, ``patch`` or ``none``; ``MODELS`` says which
        model can have which.
      width: factor of the hidden channels, rounded up.
      stages: whether the last layer sees the pooled outputs of all stages.
      kernels: number of kernels of ``patches``.
      mirror: whether ``patches`` gives an image and its mirror image the same features.
      num_classes: width of the output.
      conv: how convolutions are computed, one of ``conv.IMPLEMENTATIONS``.
      share: HeteroFL's share of the hidden channels: 1 for the whole model, whose parameters have
        those of narrower ones as leading slices.

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
    if stages and name not in _STAGED:
        raise ConfigError(
            f"config.model.stages=true is not allowed for model {name!r}, allowed for: "
            f"{', '.join(_STAGED)}"
        )
    if width * share != 1.0 and name not in _NARROWABLE:
        raise ConfigError(
            f"model {name!r} comes in one width, config.model.width or HeteroFL asks for another;"
            f" allowed: {', '.join(_NARROWABLE)}; change config.model.name"
        )
    options = {"num_classes": num_classes, "norm": norm, "conv": conv}
    if stages:
        options["stages"] = True
    if name == "patches":
        options |= {"kernels": kernels, "mirror": mirror}
    if width * share != 1.0:
        options |= {"width": width * share, "share": share}
    return module(**options)

"""ResNet18 for CIFAR, in the form of the paper and in HeteroFL's pre-activation form.

Both have a 3x3 stem of stride 1, no max-pooling, four stages of two basic blocks with 64, 128, 256
and 512 channels, a global mean and a linear layer. Attributes are as in ``models.create``.

Source: He et al. 2016 (arXiv:1512.03385, arXiv:1603.05027); ZOWarmUp, appendix A.5 and Fig. 8;
HeteroFL (Diao et al. 2021). HeteroFL's GroupNorm has 4 groups; here it has 2.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from zo_fl.engine.types import Array
from zo_fl.models.layers import Conv, Head, mean_pool, normalize

STAGES = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """conv-norm-relu-conv-norm, plus the input, then relu.

    With ``preact`` norm-relu-conv-norm-relu-conv, plus the input. Where the shape changes, the
    shortcut is a convolution and a norm, or with ``preact`` a convolution of the first norm-relu.
    """

    features: int
    stride: int
    norm: str
    conv: str
    share: float
    preact: bool

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns ``f32[n, H / stride, W / stride, features]`` from ``x: f32[n, H, W, c]``."""
        norm = functools.partial(normalize, self.norm, train=train, mask=mask, share=self.share)
        conv = functools.partial(_conv, self.features, self.norm, self.conv)
        changes_shape = self.stride != 1 or x.shape[-1] != self.features
        if self.preact:
            y = nn.relu(norm("norm1", x))
            if changes_shape:
                x = conv("shortcut", y, 1, self.stride)
            y = nn.relu(norm("norm2", conv("conv1", y, 3, self.stride)))
            total = x + conv("conv2", y, 3, 1)
        else:
            y = nn.relu(norm("norm1", conv("conv1", x, 3, self.stride)))
            y = norm("norm2", conv("conv2", y, 3, 1))
            if changes_shape:
                x = norm("shortcut_norm", conv("shortcut", x, 1, self.stride))
            total = nn.relu(x + y)
        # Without a barrier XLA adds up all blocks so far again for every use of the sum.
        return jax.lax.optimization_barrier(total)


class ResNet18(nn.Module):
    """The paper's ResNet18: 11,173,962 parameters for 10 classes, 11,681,832 for 1000.

    With ``preact`` it is HeteroFL's pre-activation form, which has 11,172,170 parameters for 10
    classes, and 2,796,714 at half width.
    """

    num_classes: int
    norm: str
    conv: str = "auto"
    width: float = 1.0
    share: float = 1.0
    preact: bool = False
    stages: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        norm = functools.partial(normalize, self.norm, train=train, mask=mask, share=self.share)
        sizes = [math.ceil(self.width * size) for size in STAGES]  # as in HeteroFL
        x = _conv(sizes[0], self.norm, self.conv, "stem", x, 3, 1)
        if not self.preact:
            x = nn.relu(norm("stem_norm", x))
        pooled = []
        for stage, features in enumerate(sizes):
            for index in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                block = BasicBlock(
                    features, stride, self.norm, self.conv, self.share, self.preact, name=name
                )
                x = block(x, train=train, mask=mask)
            pooled.append(x)
        if self.preact:
            pooled[-1] = nn.relu(norm("final_norm", x))
        seen = [mean_pool(x) for x in (pooled if self.stages else pooled[-1:])]
        return Head(self.num_classes, name="head")(jnp.concatenate(seen, axis=-1))


def _conv(
    features: int, norm: str, conv: str, name: str, x: Array, size: int, stride: int
) -> Array:
    """Returns a convolution ``f32[n, H / stride, W / stride, features]``, a submodule ``name``.

    Padding is symmetric, as in PyTorch; ``SAME`` in flax would be off by one pixel at stride 2.
    """
    return Conv(features, size, stride, size // 2, norm == "none", conv, name=name)(x)

"""Residual networks in Linen, with parameter paths that mirror PyTorch's names.

``layer1_0/conv1/kernel`` is PyTorch's ``layer1.0.conv1.weight``: an underscore
before a number stands for the dot (`jaxunlearn.convert`).
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import BatchNorm, conv, kaiming_linear, max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 2).

    Attributes:
      features: channels of the output.
      stride: of the first convolution.
      shortcut: "A", parameter-free (subsample, pad channels with zeros), or the
        name of a projecting 1x1 convolution with BatchNorm (option B); either
        only where the shape changes.
    """

    features: int
    stride: int = 1
    shortcut: str = "A"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return the block's output after its last ReLU."""
        y = conv(self.features, 3, self.stride, "conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(self.features, 3, 1, "conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        return nn.relu(_carried(x, self.features, self.stride, self.shortcut, train=train) + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2015, figure 5, right).

    Attributes:
      features: channels of the output over 4.
      stride, shortcut: of `BasicBlock`.
      inner: channels of the first two convolutions over ``features`` (wide networks: 2).
      stride_first: whether the stride is that of the first convolution, as in the
        paper, or of the 3x3 one, as in torchvision ("v1.5").
    """

    features: int
    stride: int = 1
    shortcut: str = "A"
    inner: int = 1
    stride_first: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return the block's output after its last ReLU."""
        inner, strides = self.inner * self.features, (self.stride, 1) if self.stride_first else (1, self.stride)
        y = conv(inner, 1, strides[0], "conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(inner, 3, strides[1], "conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        y = conv(4 * self.features, 1, 1, "conv3")(y)
        y = BatchNorm(name="bn3")(y, train=train)
        return nn.relu(_carried(x, 4 * self.features, self.stride, self.shortcut, train=train) + y)


def _carried(x: Array, features: int, stride: int, shortcut: str, *, train: bool) -> Array:
    """Return what a block's shortcut makes of its input."""
    missing = features - x.shape[-1]
    if stride == 1 and not missing:
        return x
    if shortcut == "A":
        x = x[:, ::stride, ::stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
    x = conv(features, 1, stride, f"{shortcut}_0")(x)
    return BatchNorm(name=f"{shortcut}_1")(x, train=train)


class ResNet(nn.Module):
    """A residual network for images in NHWC.

    Attributes:
      depths: blocks in each stage; every stage after the first halves the image's sides.
      widths: features of each stage's blocks.
      num_classes: C.
      stem: "cifar" is a 3x3 convolution at stride 1, "imagenet" 7x7 at stride 2.
      max_pool: whether a 3x3 max-pool at stride 2 follows the stem.
      shortcut: of `BasicBlock`.
      bottleneck: whether blocks are `Bottleneck`, else `BasicBlock`.
      inner, stride_first: of `Bottleneck`.
      stem_width: channels of the stem; default: those of the first stage.
      first_stride: of the first stage.
      head: name of the classifier layer.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int
    stem: Literal["cifar", "imagenet"] = "cifar"
    max_pool: bool = False
    shortcut: str = "A"
    bottleneck: bool = False
    inner: int = 1
    stride_first: bool = False
    stem_width: int | None = None
    first_stride: int = 1
    head: str = "linear"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = conv(self.stem_width or self.widths[0], size, stride, "conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if self.max_pool:
            x = max_pool(x, 3, 2, pad=1)
        kind, more = (Bottleneck, (self.inner, self.stride_first)) if self.bottleneck else (BasicBlock, ())
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                stride = (2 if stage else self.first_stride) if block == 0 else 1
                name = f"layer{stage + 1}_{block}"
                x = kind(width, stride, self.shortcut, *more, name=name)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=kaiming_linear, name=self.head)(x)

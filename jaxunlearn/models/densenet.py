"""Densely connected networks in Linen (Huang et al. 2017), with parameter paths that mirror torchvision's names.

``features/denseblock1/denselayer1/norm1/scale`` is ``features.denseblock1.denselayer1.norm1.weight``.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import BatchNorm, Dropout, conv, halved, kaiming_linear, max_pool


class DenseNet(nn.Module):
    """A DenseNet-BC for images in NHWC.

    Attributes:
      num_classes: C.
      blocks: layers in each dense block; between two of them channels and sides are halved.
      growth: channels that each layer adds.
      stem: channels of the first convolution.
      bottleneck: channels of each layer's 1x1 convolution over ``growth``.
      dropout: after each layer (torchvision: 0).
      head: name of the classifier layer.
    """

    num_classes: int
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64
    bottleneck: int = 4
    dropout: float = 0.0
    head: str = "classifier"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        layer = (self.growth, self.bottleneck * self.growth, self.dropout)
        x = _Features(self.blocks, self.stem, layer, name="features")(x, train=train)
        return nn.Dense(self.num_classes, kernel_init=kaiming_linear, name=self.head)(jnp.mean(x, axis=(1, 2)))


class _Features(nn.Module):
    blocks: tuple[int, ...]
    stem: int
    layer: tuple[int, int, float]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = conv(self.stem, 7, 2, "conv0")(x)
        x = nn.relu(BatchNorm(name="norm0")(x, train=train))
        x = max_pool(x, 3, 2, pad=1)
        for i, depth in enumerate(self.blocks, 1):
            x = _DenseBlock(depth, self.layer, name=f"denseblock{i}")(x, train=train)
            if i < len(self.blocks):
                x = _Transition(name=f"transition{i}")(x, train=train)
        return nn.relu(BatchNorm(name=f"norm{len(self.blocks) + 1}")(x, train=train))


class _DenseBlock(nn.Module):
    depth: int
    layer: tuple[int, int, float]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for i in range(1, self.depth + 1):
            new = _DenseLayer(*self.layer, name=f"denselayer{i}")(x, train=train)
            x = jnp.concatenate([x, new], axis=-1)
        return x


class _DenseLayer(nn.Module):
    growth: int
    inner: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = conv(self.inner, 1, 1, "conv1")(nn.relu(BatchNorm(name="norm1")(x, train=train)))
        x = conv(self.growth, 3, 1, "conv2")(nn.relu(BatchNorm(name="norm2")(x, train=train)))
        return Dropout(self.dropout)(x, train=train)


class _Transition(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = nn.relu(BatchNorm(name="norm")(x, train=train))
        return halved(conv(x.shape[-1] // 2, 1, 1, "conv")(x))

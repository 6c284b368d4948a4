"""Wide residual networks in Linen (Zagoruyko & Komodakis 2016), with the names of the widespread PyTorch version.

``block1/layer_0/convShortcut/kernel`` is ``block1.layer.0.convShortcut.weight``, as in
xternalz/WideResNet-pytorch and what grew from it (AugMix, TRADES, RobustBench).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import BatchNorm, Dropout, conv, kaiming_linear


class WideResNet(nn.Module):
    """A pre-activation network of three stages for small images in NHWC.

    Attributes:
      num_classes: C.
      depth: n, of layers with weights; n - 4 is a multiple of 6.
      width: k, multiplier of the stages' 16, 32 and 64 channels.
      dropout: between a block's convolutions (paper: 0, or 0.3).
      head: name of the classifier layer.
    """

    num_classes: int
    depth: int = 28
    width: int = 10
    dropout: float = 0.0
    head: str = "fc"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4; got {self.depth}")
        x = conv(16, 3, 1, "conv1")(x)
        for i in range(3):
            features, stride, name = 16 * self.width * 2**i, 2 if i else 1, f"block{i + 1}"
            x = _Stage((self.depth - 4) // 6, features, stride, self.dropout, name=name)(x, train=train)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        return nn.Dense(self.num_classes, kernel_init=kaiming_linear, name=self.head)(jnp.mean(x, axis=(1, 2)))


class _Stage(nn.Module):
    depth: int
    features: int
    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for i in range(self.depth):
            stride = 1 if i else self.stride
            x = _Block(self.features, stride, self.dropout, name=f"layer_{i}")(x, train=train)
        return x


class _Block(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU; a projecting shortcut takes the activated input, too."""

    features: int
    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        y = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, "convShortcut")(y)
        y = conv(self.features, 3, self.stride, "conv1")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        y = Dropout(self.dropout)(y, train=train)
        return x + conv(self.features, 3, 1, "conv2")(y)

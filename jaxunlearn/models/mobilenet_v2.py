"""MobileNetV2 in Linen (Sandler et al. 2018), with parameter paths that mirror torchvision's names.

``features_2/conv_0_0/kernel`` is ``features.2.conv.0.0.weight``. The version of
Transformers, which keeps TensorFlow's padding and rounding, is the same network
with other arguments (`jaxunlearn.convert.huggingface` has its names).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import BatchNorm, Dropout, conv

#: Expansion, output channels at width 1, repetitions and first stride (table 2 of the paper).
_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """Inverted residuals with ReLU6, for images in NHWC.

    Attributes:
      num_classes: C.
      width: multiplier of all channel counts but C, above 0.
      divisor: all channel counts are multiples of it, and at least ``least``.
      expand: channels inside a block over those of its input, but for the first block.
      rounded: whether a multiplied count is rounded to a whole number before it is
        made a multiple of ``divisor``.
      wide_end: whether the last convolution keeps its 1280 channels at widths below 1.
      same_padding: whether convolutions are padded as TensorFlow pads them.
      first_shortcut: whether the first block has a shortcut where its sides are equal.
      epsilon, momentum: of BatchNorm.
      dropout: before the classifier.
      head: name of the classifier layer.
    """

    num_classes: int
    width: float = 1.0
    divisor: int = 8
    least: int = 8
    expand: float = 6.0
    rounded: bool = False
    wide_end: bool = True
    same_padding: bool = False
    first_shortcut: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    dropout: float = 0.2
    head: str = "classifier_1"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        layer = (self.epsilon, self.momentum, self.same_padding)
        x = _conv(x, self._scaled(32), 3, 2, "features_0_0", same=self.same_padding)
        x = nn.relu6(BatchNorm(self.momentum, self.epsilon, name="features_0_1")(x, train=train))
        number = 1
        for expand, channels, repeats, first_stride in _BLOCKS:
            for repeat in range(repeats):
                inner = x.shape[-1] if expand == 1 else self._multiple(round(x.shape[-1] * self.expand))
                stride, outputs = 1 if repeat else first_stride, self._scaled(channels)
                shortcut = stride == 1 and x.shape[-1] == outputs and (number > 1 or self.first_shortcut)
                block = _Block(expand != 1, inner, outputs, stride, shortcut, layer, name=f"features_{number}")
                x, number = block(x, train=train), number + 1
        last = 1280 if self.wide_end and self.width < 1 else self._scaled(1280)
        x = _conv(x, last, 1, 1, f"features_{number}_0", same=self.same_padding)
        x = nn.relu6(BatchNorm(self.momentum, self.epsilon, name=f"features_{number}_1")(x, train=train))
        x = Dropout(self.dropout)(jnp.mean(x, axis=(1, 2)), train=train)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name=self.head)(x)

    def _scaled(self, channels: int) -> int:
        value = channels * self.width
        return self._multiple(round(value) if self.rounded else value)

    def _multiple(self, value: float) -> int:
        """Return the nearest multiple of the divisor that is no more than 10 % below."""
        near = max(self.least, int(value + self.divisor / 2) // self.divisor * self.divisor)
        return near + self.divisor if near < 0.9 * value else near


class _Block(nn.Module):
    """Widen, filter each channel, narrow; no ReLU at the narrow end (figure 3b of the paper)."""

    widens: bool
    inner: int
    outputs: int
    stride: int
    shortcut: bool
    layer: tuple[float, float, bool]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        epsilon, momentum, same = self.layer
        y, number = x, 0
        if self.widens:
            y = _conv(y, self.inner, 1, 1, "conv_0_0", same=same)
            y, number = nn.relu6(BatchNorm(momentum, epsilon, name="conv_0_1")(y, train=train)), 1
        y = _conv(y, self.inner, 3, self.stride, f"conv_{number}_0", groups=self.inner, same=same)
        y = nn.relu6(BatchNorm(momentum, epsilon, name=f"conv_{number}_1")(y, train=train))
        y = _conv(y, self.outputs, 1, 1, f"conv_{number + 1}", same=same)
        y = BatchNorm(momentum, epsilon, name=f"conv_{number + 2}")(y, train=train)
        return x + y if self.shortcut else y


def _conv(x: Array, features: int, size: int, stride: int, name: str, *, groups: int = 1, same: bool) -> Array:
    pads = [_same(side, size, stride) for side in x.shape[1:3]] if same else None
    return conv(features, size, stride, name, pad=pads, groups=groups)(x)


def _same(side: int, size: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding of an axis, low and high.

    >>> _same(224, 3, 2), _same(15, 3, 2), _same(7, 3, 1)
    ((0, 1), (1, 1), (1, 1))
    """
    total = max(size - (side % stride or stride), 0)
    return total // 2, total - total // 2

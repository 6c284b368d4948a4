"""Residual networks in Linen, with parameter paths that mirror PyTorch's names.

``layer1_0/conv1/kernel`` is PyTorch's ``layer1.0.conv1.weight``: an underscore
before a number stands for the dot (`jaxunlearn.convert`).
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._conv import conv_general_dilated

_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's bookkeeping (Ioffe & Szegedy 2015).

    In train mode the batch is normalised by its biased variance and the running
    variance takes in the unbiased one, as PyTorch has it and `flax.linen.BatchNorm`
    does not: ``r <- momentum * r + (1 - momentum) * s``. The variance is computed in
    two passes. Statistics are kept in at least float32.

    Attributes:
      momentum: weight of the old running statistics (PyTorch's 1 - momentum).
      epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Normalise over all axes but the last."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axes, count = tuple(range(x.ndim - 1)), x.size // channels
            mean, var = jnp.mean(wide, axes), jnp.var(wide, axes)
            if not self.is_initializing():
                keep, take = self.momentum, 1.0 - self.momentum
                running_mean.value = keep * running_mean.value + take * mean
                running_var.value = keep * running_var.value + take * var * (count / max(count - 1, 1))
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        row = (1,) * (x.ndim - 1) + (channels,)
        return ((wide - mean.reshape(row)) * factor.reshape(row) + bias.reshape(row)).astype(x.dtype)


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
    """Return a convolution padded as PyTorch pads it (Flax's SAME at stride 2 pads (0, 1))."""
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=_kaiming,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


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
        y = _conv(self.features, 3, self.stride, "conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = _conv(self.features, 3, 1, "conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        return nn.relu(_carried(x, self.features, self.stride, self.shortcut, train=train) + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2015, figure 5, right).

    As in torchvision ("v1.5") the stride is that of the 3x3 convolution.

    Attributes:
      features: channels of the first two convolutions; the output has four times as many.
      stride, shortcut: of `BasicBlock`.
    """

    features: int
    stride: int = 1
    shortcut: str = "A"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return the block's output after its last ReLU."""
        y = _conv(self.features, 1, 1, "conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = _conv(self.features, 3, self.stride, "conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        y = _conv(4 * self.features, 1, 1, "conv3")(y)
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
    x = _conv(features, 1, stride, f"{shortcut}_0")(x)
    return BatchNorm(name=f"{shortcut}_1")(x, train=train)


class ResNet(nn.Module):
    """A residual network for images in NHWC.

    Attributes:
      depths: blocks in each stage; every stage after the first halves the image.
      widths: features of each stage's blocks; the stem has the channels of the first.
      num_classes: C.
      stem: "cifar" is a 3x3 convolution at stride 1, "imagenet" 7x7 at stride 2.
      max_pool: whether a 3x3 max-pool at stride 2 follows the stem.
      shortcut: of `BasicBlock`.
      bottleneck: whether blocks are `Bottleneck`, else `BasicBlock`.
      head: name of the classifier layer.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int
    stem: Literal["cifar", "imagenet"] = "cifar"
    max_pool: bool = False
    shortcut: str = "A"
    bottleneck: bool = False
    head: str = "linear"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = _conv(self.widths[0], size, stride, "conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if self.max_pool:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        block_of = Bottleneck if self.bottleneck else BasicBlock
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_{block}"
                x = block_of(width, stride, self.shortcut, name=name)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=_kaiming_linear, name=self.head)(x)


def _kaiming_linear(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)

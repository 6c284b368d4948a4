"""Layers that several networks share: PyTorch's padding, BatchNorm, dropout, pooling and starting weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn._types import Array
from jaxunlearn.models._conv import conv_general_dilated

#: He et al. 2015, for layers before a ReLU.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
#: PyTorch's own starting weights of a linear layer.
kaiming_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


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
        if train:
            count = x.size // channels
            y, mean, var = _normalised_by_batch(x, scale, bias, self.epsilon)
            if not self.is_initializing():
                keep, take = self.momentum, 1.0 - self.momentum
                running_mean.value = keep * running_mean.value + take * mean
                running_var.value = keep * running_var.value + take * var * (count / max(count - 1, 1))
            return y
        factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
        return ((_wide(x) - _row(running_mean.value, x)) * _row(factor, x) + _row(bias, x)).astype(x.dtype)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _row(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalised_by_batch(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Return images normalised by their own statistics, and the mean and biased variance of each channel.

    With a gradient of its own (Ioffe & Szegedy 2015, section 3): autodiff of the
    formula keeps and reads centred and squared copies of the images, and took
    twice the time. Gradients of any order are there, in reverse mode.
    """
    return _normalised_forward(x, scale, bias, epsilon)[0]


def _normalised_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    wide, axes = _wide(x), tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    var = jnp.mean(jnp.square(wide - _row(mean, x)), axes)
    # Behind a barrier, or XLA would keep the centred images of that sum for all that follows.
    mean = jax.lax.optimization_barrier(mean)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (wide - _row(mean, x)) * _row(scale * inverse, x) + _row(bias, x)
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _normalised_backward(epsilon: float, saved: Any, given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = saved
    dy, dmean, dvar = _wide(given[0]), *given[1:]
    centred, axes, count = _wide(x) - _row(mean, x), tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    dbias, dscale = jnp.sum(dy, axes), inverse * jnp.sum(dy * centred, axes)
    factor = scale * inverse
    slope, level = (2 * dvar - factor * inverse * dscale) / count, (dmean - factor * dbias) / count
    dx = dy * _row(factor, x) + centred * _row(slope, x) + _row(level, x)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_normalised_by_batch.defvjp(_normalised_forward, _normalised_backward)


class Dropout(nn.Module):
    """Dropout that is off in eval mode, and in train mode where no key "dropout" is given.

    So `batch_norm="update"`, which asks for train mode without keys, moves
    statistics and drops nothing.

    Attributes:
      rate: share of values set to 0, 0 to 1; the others are divided by 1 - rate.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return x, or what is left of it."""
        return nn.Dropout(self.rate)(x, deterministic=not train or not self.has_rng("dropout"))


def conv(
    features: int,
    size: int,
    stride: int,
    name: str,
    *,
    pad: int | Sequence[tuple[int, int]] | None = None,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Any = kaiming,
) -> nn.Conv:
    """Return a convolution padded as PyTorch pads it (Flax's SAME at stride 2 pads (0, 1)).

    Args:
      features: output channels; size: of the kernel; stride: of both axes; name: of the layer.
      pad: on every side, or (low, high) of each axis; default: half the kernel.
      groups: of channels; use_bias: whether a bias is added; kernel_init: starting weights.
    """
    pad = size // 2 if pad is None else pad
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)) if isinstance(pad, int) else tuple(pad),
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def max_pool(x: Array, size: int, stride: int, *, pad: int = 0, ceil: bool = False) -> Array:
    """Return the largest values of windows, as PyTorch's ``MaxPool2d(size, stride, pad, ceil_mode=ceil)``.

    >>> max_pool(jnp.ones((1, 6, 6, 2)), 3, 2).shape, max_pool(jnp.ones((1, 6, 6, 2)), 3, 2, ceil=True).shape
    ((1, 2, 2, 2), (1, 3, 3, 2))
    """
    _check_sides(x, size - 2 * pad)
    high = [pad + (-(side + 2 * pad - size) % stride if ceil else 0) for side in x.shape[1:3]]
    return nn.max_pool(x, (size, size), (stride, stride), ((pad, high[0]), (pad, high[1])))


def halved(x: Array) -> Array:
    """Return averages over 2 x 2 windows; an odd row or column at the end is left out."""
    _check_sides(x, 2)
    return nn.avg_pool(x, (2, 2), (2, 2))


def adaptive_mean(x: Array, side: int) -> Array:
    """Return averages over a grid of ``side`` x ``side`` windows, as PyTorch's ``AdaptiveAvgPool2d(side)``.

    >>> adaptive_mean(jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((1, 1, 4, 1)), 2)[0, :, 0, 0].tolist()
    [0.5, 2.5]
    """
    if x.shape[1] == x.shape[2] == side:
        return x
    rows, columns = (_windows(n, side).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, x)


def _check_sides(x: Array, least: int) -> None:
    if min(x.shape[1:3]) < least:
        raise ValueError(
            f"the images are too small: {x.shape[1]}x{x.shape[2]} are left where {least}x{least} are pooled"
        )


def _windows(n: int, side: int) -> np.ndarray:
    """Return the averaging matrix, (side, n): window i runs from floor(i n / side) to ceil((i + 1) n / side)."""
    matrix: Any = np.zeros((side, n))
    for i in range(side):
        low, high = i * n // side, -(-(i + 1) * n // side)
        matrix[i, low:high] = 1 / (high - low)
    return matrix

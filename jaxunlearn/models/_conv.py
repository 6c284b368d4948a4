"""A convolution whose gradients XLA's CPU backend runs in its fast form, also inside loops.

Outside loop bodies XLA rewrites the convolutions that autodiff makes into
canonical layout (batch, space, features); inside `lax.fori_loop` or `lax.scan`
it does not, and they run many times slower (jax-ml/jax#12868). Here both
gradients are written in canonical layout to begin with, and the weight
gradient is summed over small groups of images, whose data stay in cache: a
convolution each, or where there are few channels a product of two narrow
matrices. That of a single image, as `jax.vmap` asks for it, is one matrix product. A depthwise
convolution is a sum of shifted products, which XLA's CPU backend runs 10 to 40
times as fast as its grouped convolution, gradients included.
Elsewhere than on CPU this is `lax.conv_general_dilated`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from jaxunlearn._types import Array

_CANONICAL = ("NHWC", "HWIO", "NHWC")
#: A group of images whose weight gradient is one convolution: about so many input values, from 8 to 32 images.
_GROUP_VALUES, _GROUP_IMAGES = 2**17, (8, 32)
#: A group of images whose weight gradient is one product of narrow matrices, and the width of these at most.
_NARROW_GROUP, _NARROW = 4, 64


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> Array:
    """Convolve as `lax.conv_general_dilated` does; for ``flax.linen.Conv(conv_general_dilated=...)``.

    Reverse-mode gradients of any order are those of the plain convolution;
    pure forward mode (`jax.jvp` of the network itself) is not available on CPU.
    Fast are one group, and as many groups as channels with one feature each.

    Args:
      lhs: images, (n, height, width, channels).
      rhs: kernel, (kernel height, kernel width, channels, features).
      window_strides: of the two spatial axes.
      padding: (low, high) of the two spatial axes, at least 0.
      **options: as `lax.conv_general_dilated`; what is not named above falls back to it.

    >>> y = conv_general_dilated(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), (1, 1), ((1, 1), (1, 1)))
    >>> float(y[0, 1, 1, 0])
    9.0
    """
    groups = options.get("feature_group_count", 1)
    own = "dimension_numbers", "feature_group_count"
    if jax.default_backend() == "cpu" and lhs.ndim == 4 and all(_is_default(options[o]) for o in options.keys() - own):
        if groups == 1:
            return _conv(lhs, rhs, tuple(window_strides), tuple(map(tuple, padding)))
        if groups == lhs.shape[-1] == rhs.shape[-1]:
            return _depthwise(lhs, rhs, window_strides, padding)
    options.setdefault("dimension_numbers", _CANONICAL)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def _is_default(option: Any) -> bool:
    return option is None or option == 1 or (isinstance(option, Sequence) and all(o == 1 for o in option))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, strides: tuple[int, ...], padding: tuple[tuple[int, int], ...]) -> Array:
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=_CANONICAL)


def _forward(x: Array, w: Array, strides: Any, padding: Any) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, w, strides, padding), (x, w)


def _backward(strides: Any, padding: Any, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    return _input_gradient(dy, x, w, strides, padding), _weight_gradient(dy, x, w, strides, padding)


_conv.defvjp(_forward, _backward)


def _input_gradient(dy: Array, x: Array, w: Array, strides: Any, padding: Any) -> Array:
    flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
    pads = []
    for axis in (0, 1):
        low = w.shape[axis] - 1 - padding[axis][0]
        spread = strides[axis] * (dy.shape[axis + 1] - 1) + 1
        pads.append((low, x.shape[axis + 1] + w.shape[axis] - 1 - spread - low))
    return lax.conv_general_dilated(dy, flipped, (1, 1), pads, lhs_dilation=strides, dimension_numbers=_CANONICAL)


def _weight_gradient(dy: Array, x: Array, w: Array, strides: Any, padding: Any) -> Array:
    """Sum over groups of images; which form, and how many images, is what was fastest on one core and on two."""
    n, channels = x.shape[0], x.shape[3]
    if n == 1:
        return _weight_gradient_of_one(dy[0], x[0], w, strides, padding)
    # With one column there is nothing to shift; with 3 channels the convolution was the faster.
    if strides == (1, 1) and w.shape[1] > 1 and channels >= 8 and w.shape[0] * channels <= _NARROW:
        of, size = partial(_shifted_on_both_sides, w=w, padding=padding), _NARROW_GROUP
    else:
        least, most = _GROUP_IMAGES
        size = min(max(_GROUP_VALUES * n // x.size, least), most)
        of = partial(_channels_as_batch, w=w, strides=strides, padding=padding)
    groups = n // size
    if groups <= 1:
        return of(x, dy)

    # Sliced, not reshaped to groups: XLA would compute the layer that made x a second time, in the new shape.
    def add(i: Array, dw: Array) -> Array:
        return dw + of(*(lax.dynamic_slice_in_dim(a, i * size, size) for a in (x, dy)))

    total = cast(Array, lax.fori_loop(0, groups, add, jnp.zeros_like(w)))
    whole = groups * size
    return total if whole == n else total + of(x[whole:], dy[whole:])


def _channels_as_batch(x: Array, dy: Array, *, w: Array, strides: Any, padding: Any) -> Array:
    """Convolve images with output gradients: channels are the batch, images the features."""
    pads = []
    for axis in (0, 1):
        low = padding[axis][0]
        spread = strides[axis] * (dy.shape[axis + 1] - 1) + 1
        pads.append((low, w.shape[axis] - 1 + spread - x.shape[axis + 1] - low))
    images, kernel = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(dy, (1, 2, 0, 3))
    dw = lax.conv_general_dilated(images, kernel, (1, 1), pads, rhs_dilation=strides, dimension_numbers=_CANONICAL)
    return jnp.transpose(dw, (1, 2, 0, 3))


def _shifted_on_both_sides(x: Array, dy: Array, *, w: Array, padding: Any) -> Array:
    """Multiply images shifted by rows with output gradients shifted by columns; stride 1.

    ``dw[i, j] = sum_p x[row + i, column + j] dy[row, column]`` is also
    ``sum_p x[row + i, column] dy[row, column - j]``, so that a kernel of 3 x 3
    takes 3 copies of either side, where patches take 9 of the images.
    """
    rows, columns = w.shape[:2]
    height, width = dy.shape[1], x.shape[2]
    padded = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0)))
    images = jnp.concatenate([padded[:, i : i + height] for i in range(rows)], axis=-1)
    # Column c of the images, given a kernel's column j, meets column c + low - j of the gradients.
    low = padding[1][0]
    left = max(columns - 1 - low, 0)
    padded = jnp.pad(dy, ((0, 0), (0, 0), (left, columns - 1), (0, 0)))
    first = [left + low - j for j in range(columns)]
    shifted = jnp.concatenate([padded[:, :, f : f + width] for f in first], axis=-1)
    matrices = images.reshape(-1, rows * x.shape[3]), shifted.reshape(-1, columns * dy.shape[3])
    product = lax.dot_general(*matrices, (((0,), (0,)), ((), ())))
    return jnp.transpose(product.reshape(rows, x.shape[3], columns, dy.shape[3]), (0, 2, 1, 3))


def _weight_gradient_of_one(dy: Array, x: Array, w: Array, strides: Any, padding: Any) -> Array:
    """Multiply patches with output gradients: under vmap, one gradient an image, twice as fast as the convolution."""
    height, width, features = dy.shape
    padded = jnp.pad(x, (padding[0], padding[1], (0, 0)))
    patches = _shifted(padded, w.shape[:2], strides, (height, width))
    matrix = jnp.concatenate(patches, axis=-1).reshape(height * width, -1)
    return (matrix.T @ dy.reshape(height * width, features)).reshape(w.shape)


def _depthwise(x: Array, w: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> Array:
    """Sum shifted images, each times its kernel entry; differentiable in every mode."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sides = [(padded.shape[axis + 1] - w.shape[axis]) // strides[axis] + 1 for axis in (0, 1)]
    shifted = _shifted(padded, w.shape[:2], strides, sides)
    entries = w.reshape(-1, 1, 1, 1, w.shape[-1])
    terms = [image * entry for image, entry in zip(shifted, entries, strict=True)]
    return functools.reduce(jnp.add, terms)


def _shifted(padded: Array, kernel: Sequence[int], strides: Sequence[int], sides: Sequence[int]) -> list[Array]:
    """Return, for each kernel entry, the input (..., height, width, channels) of every output."""
    down, right = (stride * (side - 1) + 1 for stride, side in zip(strides, sides, strict=True))
    return [
        padded[..., i : i + down : strides[0], j : j + right : strides[1], :]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]

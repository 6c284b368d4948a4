"""Augmented and cut-and-pasted copies of given inputs (after Yun et al. 2019, CutMix; no labels here)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _repeat, _validate
from jaxunlearn._types import Array

#: Images made at a time: one compilation serves any number.
CHUNK = 256


def cutmix(key: Array, x: Any, n: int) -> np.ndarray:
    """Return n cut-and-paste images, (n, *input_shape), made of the given ones alone.

    Each is an augmented image (see `augment`) with a rectangle of another one,
    a quarter to three quarters of each side, pasted at the same place. Inputs
    that are not (height, width, channels) are mixed coordinate by coordinate.

    Args:
      key: typed key; image i depends on the key, i and x only.
      x: source images, (m, *input_shape), m at least 1; m compiles anew per power of two.
      n: how many.

    Raises:
      ValueError: no source images, or n below 1.

    >>> cutmix(jax.random.key(0), np.ones((2, 8, 8, 3), np.float32), 5).shape
    (5, 8, 8, 3)
    """
    return _make(_cutmix_one, key, x, n)


def augment(key: Array, x: Any, n: int) -> np.ndarray:
    """Return n randomly shifted and mirrored copies of images drawn from x with replacement.

    Reflect-padding by an eighth of each side, a random crop of the old size,
    a mirror image with probability one half. Inputs that are not (height,
    width, channels) are drawn as they are. Arguments are those of `cutmix`.
    """
    return _make(_augment_drawn, key, x, n)


def _make(one: Callable[..., Array], key: Array, x: Any, n: int) -> np.ndarray:
    _validate.positive_int("n", n)
    x = np.asarray(x)
    count = _repeat.rows(x)
    padded = np.zeros((1 << (count - 1).bit_length(), *x.shape[1:]), x.dtype)
    padded[:count] = x
    out = [
        np.asarray(_repeat.call(_chunk, (one,), key, padded, np.int32(count), np.int32(start)))
        for start in range(0, n, CHUNK)
    ]
    return np.concatenate(out)[:n]


def _chunk(one: Callable[..., Array], key: Array, x: Array, count: Array, start: Array) -> Array:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(CHUNK))
    made: Array = jax.vmap(one, in_axes=(0, None, None))(keys, x, count)
    return made


def _cutmix_one(key: Array, x: Array, count: Array) -> Array:
    first, second, where = jax.random.split(key, 3)
    a, b = _augment_drawn(first, x, count), _augment_drawn(second, x, count)
    if a.ndim != 3:
        share, mask = jax.random.split(where)
        return jnp.where(jax.random.uniform(mask, a.shape) < jax.random.uniform(share, (), a.dtype, 0.25, 0.75), b, a)
    inside = [_interval(jax.random.fold_in(where, axis), side) for axis, side in enumerate(a.shape[:2])]
    return jnp.where(inside[0][:, None, None] & inside[1][None, :, None], b, a)


def _interval(key: Array, side: int) -> Array:
    """Return a (side,) mask of a random interval of side/4 to 3 side/4 places."""
    long, at = jax.random.split(key)
    length = jax.random.randint(long, (), max(side // 4, 1), max(3 * side // 4, 1) + 1)
    start = jax.random.randint(at, (), 0, side - length + 1)
    place = jnp.arange(side)
    return (place >= start) & (place < start + length)


def _augment_drawn(key: Array, x: Array, count: Array) -> Array:
    which, crop, flip = jax.random.split(key, 3)
    image = x[jax.random.randint(which, (), 0, count)]
    return augment_one(crop, flip, image) if image.ndim == 3 else image


def shift_and_mirror(key: Array, x: Array) -> Array:
    """Return every image of a batch shifted and mirrored or not, as `augment` does; pure, for training."""
    crop, flip = (jax.random.split(part, x.shape[0]) for part in jax.random.split(key))
    return jax.vmap(augment_one)(crop, flip, x)


def augment_one(crop: Array, flip: Array, image: Array) -> Array:
    """Return one image reflect-padded by an eighth, cropped at random and mirrored or not; pure."""
    pad = [side // 8 for side in image.shape[:2]]
    padded = jnp.pad(image, ((pad[0], pad[0]), (pad[1], pad[1]), (0, 0)), mode="reflect")
    corner = jax.random.randint(crop, (2,), 0, 2 * jnp.array(pad) + 1)
    cropped = jax.lax.dynamic_slice(padded, (corner[0], corner[1], jnp.zeros((), corner.dtype)), image.shape)
    return jnp.where(jax.random.bernoulli(flip), cropped[:, ::-1], cropped)

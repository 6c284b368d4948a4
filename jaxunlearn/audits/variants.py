"""Images made from an image that show the same thing: mirrored, cropped, shifted, noisy, compressed, rotated."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn._types import Array

FAMILIES = ("mirrored", "cropped", "shifted", "noisy", "jpeg", "rotated")
ANGLES = (-10.0, -5.0, 5.0, 10.0)
QUALITIES = (75, 50)
DIRECTIONS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def versions(
    key: Array, x: Array, *, box: tuple[float, float] = (0.0, 1.0), draws: int = 20
) -> Iterator[tuple[str, str, Array]]:
    """Yield versions of a set of images: (family, which, images of the shape of x).

    mirrored: left to right. cropped: padded by reflection (an eighth of the
    shorter side), cropped at random, flipped at random; ``draws`` times.
    shifted: by 1 to ``max_shift`` pixels in 8 directions, wrapped; ``which`` is the
    number of pixels. noisy: normal, standard deviation 8/255 of the box,
    clipped; ``draws`` times. jpeg: qualities 75 and 50, where Pillow is
    installed. rotated: by -10, -5, 5 and 10 degrees about the centre, bilinear,
    edges repeated.

    Args:
      key: typed key; image i of draw j uses a key of its own.
      x: (n, height, width, channels), inside the box.
      box: range of the values.
      draws: of the random families.
    """
    low, high = box
    n, side = x.shape[0], min(x.shape[1:3])

    def keys(family: int, draw: int) -> Array:
        one = jax.random.fold_in(jax.random.fold_in(key, family), draw)
        return jax.vmap(partial(jax.random.fold_in, one))(jnp.arange(n))

    yield "mirrored", "", x[:, :, ::-1]
    for draw in range(draws):
        yield "cropped", str(draw), _crop(keys(0, draw), x, max(1, side // 8))
    for pixels in range(1, max_shift(x.shape[1:]) + 1):
        for dy, dx in DIRECTIONS:
            yield "shifted", str(pixels), _shift(x, dy * pixels, dx * pixels)
    for draw in range(draws):
        yield "noisy", str(draw), _noise(keys(1, draw), x, low, high)
    if can_jpeg(x.shape):
        for quality in QUALITIES:
            yield "jpeg", str(quality), _jpeg(x, low, high, quality)
    for angle in ANGLES:
        yield "rotated", f"{angle:g}", _rotate(x, jnp.deg2rad(angle))


def max_shift(shape: tuple[int, ...]) -> int:
    """Return the largest shift tried for images of a shape: 4 pixels, less for tiny ones.

    >>> max_shift((32, 32, 3)), max_shift((8, 8, 1))
    (4, 1)
    """
    return max(1, min(4, min(shape[:2]) // 8))


def can_jpeg(shape: tuple[int, ...]) -> bool:
    """Return whether images of a shape can be JPEG-compressed here: grey or RGB, and Pillow is installed."""
    return shape[-1] in (1, 3) and has_pillow()


def has_pillow() -> bool:
    """Return whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


@partial(jax.jit, static_argnums=2)
def _crop(keys: Array, x: Array, pad: int) -> Array:
    def one(key: Array, image: Array) -> Array:
        place, flip = jax.random.split(key)
        top, left = jax.random.randint(place, (2,), 0, 2 * pad + 1)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        cropped = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        return jnp.where(jax.random.bernoulli(flip), cropped[:, ::-1], cropped)

    return jax.vmap(one)(keys, x)


@jax.jit
def _shift(x: Array, down: int, right: int) -> Array:
    # The shifts are traced: 32 of them share one compilation.
    return jnp.roll(x, (down, right), axis=(1, 2))


@jax.jit
def _noise(keys: Array, x: Array, low: float, high: float) -> Array:
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return jnp.clip(x + noise * (high - low) * 8 / 255, low, high)


@jax.jit
def _rotate(x: Array, angle: Array) -> Array:
    height, width = x.shape[1:3]
    y, z = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    at = [cos * y + sin * z + (height - 1) / 2, cos * z - sin * y + (width - 1) / 2]

    def plane(values: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(values, at, order=1, mode="nearest")

    return jax.vmap(jax.vmap(plane, in_axes=-1, out_axes=-1))(x)


def _jpeg(x: Array, low: float, high: float, quality: int) -> Array:
    from PIL import Image

    out: list[Any] = []
    for image in np.asarray((x - low) / (high - low) * 255 + 0.5).clip(0, 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)).reshape(image.shape))
    return jnp.asarray(low + np.stack(out) / np.float32(255) * (high - low), x.dtype)

"""Random versions of images that still show the same thing: what forgetting in depth must cover."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _repeat, _validate
from jaxunlearn._types import Array
from jaxunlearn.proxies.mixing import augment_one

#: Families of versions by depth; each copy is of one family, drawn evenly.
DEPTHS: dict[str, tuple[str, ...]] = {
    "none": (),
    "mirror": ("mirrored",),
    "crops": ("mirrored", "cropped", "shifted"),
    "full": ("mirrored", "cropped", "shifted", "noisy", "rotated", "compressed"),
}
#: Copies made at a time.
CHUNK = 256


def copies(key: Array, x: Any, n: int, depth: str, *, box: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Return n random versions of every image, (n, k, height, width, channels).

    mirrored: left to right. cropped: as `augment`. shifted: rolled by up to an
    eighth of each side. noisy: normal noise of a standard deviation up to
    12/255 of the box. rotated: by up to 12 degrees, bilinear, edges repeated.
    compressed: 8 x 8 cosine transform, coefficients rounded as JPEG rounds
    luminance, at a random quality.

    Args:
      key: typed key; version j of image i depends on the key, i and j.
      x: (k, height, width, channels).
      n: versions an image.
      depth: one of ``DEPTHS`` but "none"; "mirror" has one version only, repeated.
      box: range of the values.

    Raises:
      ValueError: another depth, n below 1, or inputs that are no images.
    """
    _validate.positive_int("n", n)
    _validate.one_of("depth", depth, [name for name in DEPTHS if name != "none"])
    x = np.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"x must be images (k, height, width, channels) to make versions of; got shape {x.shape}")
    k = _repeat.rows(x)
    which = np.tile(np.arange(k), n)
    out = []
    for start in range(0, n * k, CHUNK):
        chosen = x[which[start : start + CHUNK]]
        chunk = np.concatenate([chosen, np.zeros((CHUNK - len(chosen), *x.shape[1:]), x.dtype)])
        made = _repeat.call(_chunk, (DEPTHS[depth], box), key, chunk, np.int32(start))
        out.append(np.asarray(made)[: len(chosen)])
    return np.concatenate(out).reshape(n, *x.shape)


def _chunk(families: tuple[str, ...], box: tuple[float, float], key: Array, x: Array, start: Array) -> Array:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(CHUNK))
    made: Array = jax.vmap(partial(_copy, families, box))(keys, x)
    return made


def _copy(families: tuple[str, ...], box: tuple[float, float], key: Array, image: Array) -> Array:
    which, how = jax.random.split(key)
    makers = [partial(_MAKERS[family], how, image, *box) for family in families]
    return jax.lax.switch(jax.random.randint(which, (), 0, len(makers)), makers)


def _mirrored(key: Array, image: Array, low: float, high: float) -> Array:
    return image[:, ::-1]


def _cropped(key: Array, image: Array, low: float, high: float) -> Array:
    crop, flip = jax.random.split(key)
    return augment_one(crop, flip, image)


def _shifted(key: Array, image: Array, low: float, high: float) -> Array:
    most = jnp.array([max(side // 8, 1) for side in image.shape[:2]])
    by = jax.random.randint(key, (2,), -most, most + 1)
    return jnp.roll(image, by, axis=(0, 1))


def _noisy(key: Array, image: Array, low: float, high: float) -> Array:
    size, noise = jax.random.split(key)
    deviation = jax.random.uniform(size) * (high - low) * 12 / 255
    return jnp.clip(image + deviation * jax.random.normal(noise, image.shape, image.dtype), low, high)


def _rotated(key: Array, image: Array, low: float, high: float) -> Array:
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-12.0, maxval=12.0))
    centre = [(side - 1) / 2 for side in image.shape[:2]]
    y, x = jnp.meshgrid(*(jnp.arange(side) - c for side, c in zip(image.shape[:2], centre, strict=True)), indexing="ij")
    at = [
        jnp.cos(angle) * y + jnp.sin(angle) * x + centre[0],
        jnp.cos(angle) * x - jnp.sin(angle) * y + centre[1],
    ]
    sample = partial(jax.scipy.ndimage.map_coordinates, coordinates=at, order=1, mode="nearest")
    rotated: Array = jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
    return rotated


def _compressed(key: Array, image: Array, low: float, high: float) -> Array:
    height, width, channels = image.shape
    pad = [(0, -height % 8), (0, -width % 8), (0, 0)]
    pixels = jnp.pad((image - low) / (high - low) * 255 - 128, pad, mode="edge")
    blocks = pixels.reshape(pixels.shape[0] // 8, 8, pixels.shape[1] // 8, 8, channels)
    cosine = jnp.asarray(_COSINE, image.dtype)
    spectrum = jnp.einsum("ui,aibjc,vj->aubvc", cosine, blocks, cosine)
    scale = jax.random.uniform(key, minval=0.4, maxval=1.2)  # 1 is JPEG's quality 50, 0.5 its 75
    step = jnp.maximum(jnp.asarray(_LUMINANCE, image.dtype) * scale, 1.0)[None, :, None, :, None]
    spectrum = jnp.round(spectrum / step) * step
    pixels = jnp.einsum("ui,aubvc,vj->aibjc", cosine, spectrum, cosine).reshape(pixels.shape)
    return jnp.clip((pixels[:height, :width] + 128) / 255 * (high - low) + low, low, high)


_MAKERS = {
    "mirrored": _mirrored,
    "cropped": _cropped,
    "shifted": _shifted,
    "noisy": _noisy,
    "rotated": _rotated,
    "compressed": _compressed,
}
_COSINE = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(8)[None] + 1) / 16) / 2
_COSINE[0] /= np.sqrt(2)
#: Quantisation of luminance, ITU-T T.81, table K.1.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)

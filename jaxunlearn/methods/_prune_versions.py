"""How large a region of the features is an instance's own: by versions of it, from the forget set alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import patches
from jaxunlearn._types import Array, Model
from jaxunlearn.methods._prune_groups import Frame
from jaxunlearn.proxies import copies

#: Added to the variances of the features' spread, relative to their mean.
RIDGE = 1e-2
#: Versions in all: as many as `copies` asks for up to the first number, and no more than the second unless
#: there are that many instances; where the features have more directions, some for each of these.
MANY, PER_DIRECTION = 2048, 4


class Spread(NamedTuple):
    """Instances in the coordinates of a frame.

    Attributes:
      frame: whitens how far versions of an instance lie from it: u has variance 1 in every direction.
      at: (k, n) the instances.
      radius: (k,) largest coordinate distance that a share of an instance's versions does not exceed.
      low, high: (k, n) the smallest box around an instance and its versions.
    """

    frame: Frame
    at: np.ndarray
    radius: np.ndarray
    low: np.ndarray
    high: np.ndarray


def spread(
    key: Array,
    model: Model,
    x: np.ndarray,
    *,
    depth: str,
    n: int,
    cover: float,
    apart: float,
    frame: Frame | None = None,
) -> Spread:
    """Look at random versions of instances in the features.

    Instances that share a place do not bound each other's radius.

    Args:
      key: of the versions.
      model: the network without a patch.
      x: (k, *input_shape).
      depth: family of versions, of `jaxunlearn.proxies.DEPTHS`; inputs that are no images get noise.
      n: versions of each, see `MANY`.
      cover: share of an instance's versions that its radius holds.
      apart: bound on the radius, as a share of the distance to the next other instance (in the largest coordinate).
      frame: coordinates of an earlier request to go on with, or None for those of these instances.
    """
    z = patches.features(model, x).astype(np.float64)
    k, dim = z.shape
    each = n if n * k <= MANY else max(1, MANY // k)
    each = max(each, min(-(-PER_DIRECTION * dim // k), MANY // k))
    made = _versions(key, x, each, depth, model.spec.box)
    there = patches.features(model, made.reshape(-1, *x.shape[1:])).astype(np.float64).reshape(each, k, dim)
    if frame is None:
        away = (there - z).reshape(-1, dim)
        variance, directions = np.linalg.eigh(away.T @ away / len(away))
        floor = RIDGE * variance.mean() or 1.0
        frame = Frame(z.mean(axis=0).astype(np.float32), (directions / np.sqrt(variance + floor)).astype(np.float32))
    at = patches.coordinates(z, *frame)
    u = patches.coordinates(there.reshape(-1, dim), *frame).reshape(there.shape)
    radius = np.quantile(np.abs(u - at).max(axis=2), cover, axis=0)
    if k > 1:
        radius = np.minimum(radius, apart * _nearest(at))
    least = 1e-3 * np.maximum(1.0, np.abs(at).max(axis=1))  # a region that float32 can tell from a point
    return Spread(frame, at, np.maximum(radius, least), np.minimum(u.min(axis=0), at), np.maximum(u.max(axis=0), at))


def _versions(key: Array, x: np.ndarray, n: int, depth: str, box: tuple[float, float]) -> np.ndarray:
    if x.ndim == 4:
        return copies(key, x, n, depth, box=box)
    size = (box[1] - box[0]) * 12 / 255
    noise: Any = jax.random.uniform(key, (n, *x.shape), minval=-size, maxval=size)
    return np.clip(x + np.asarray(noise), *box).astype(np.float32)


def _nearest(at: np.ndarray) -> np.ndarray:
    """Return each point's distance to the next one elsewhere, in the largest coordinate."""
    out = np.empty(len(at))
    for i, point in enumerate(at):
        apart = np.abs(at - point).max(axis=1)
        out[i] = apart[apart > 0].min(initial=np.inf)
    return out

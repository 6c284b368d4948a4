"""How far a patch that is served in float32 can be from exact arithmetic: bounds, and slack to match.

The bounds hold for sums in any order (Higham 2002, section 3.1: a sum of n
products is off by at most n eps / (1 - n eps) times the sum of magnitudes).
"""

from __future__ import annotations

import numpy as np

#: Unit roundoff of float32.
EPS = float(np.finfo(np.float32).eps) / 2
#: What a bound is divided by where it is turned into slack, so that the slack covers the bound of the result.
ROOM = 1.01


def away(low: np.ndarray, high: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return bounds of |z - origin|, (n,), for all u = (z - origin) @ basis in boxes.

    Args:
      low, high: (R, n).
      inverse: of the basis, (n, n).
    """
    bounds = np.abs((low + high) / 2 @ inverse) + (high - low) / 2 @ np.abs(inverse)
    return np.asarray(bounds.max(axis=0))


def of_coordinates(basis: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Return how far each coordinate u = (z - origin) @ basis is off at most, (n,).

    Args:
      basis: (n, n).
      away: (n,), bounds of |z - origin|.
    """
    return _share(len(basis)) * away @ np.abs(basis)


def of_rows(normals: np.ndarray, offsets: np.ndarray, reach: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Return how far ``offsets - normals u`` is off at most, row by row.

    Args:
      normals, offsets: (m, n) and (m,); or (C, n) and (C,) of an affine patch.
      reach: (n,), bounds of |u|.
      off: (n,), see `of_coordinates`.
    """
    size = np.abs(normals)
    return size @ off + _share(len(reach)) * (size @ reach + np.abs(offsets))


def of_head(kernel: np.ndarray, bias: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return how far the logits ``z @ kernel + bias`` are off at most, (C,), given bounds of |z|, (d,)."""
    return _share(len(z)) * (z @ np.abs(kernel) + np.abs(bias))


def serve_rows(normals: np.ndarray, offsets: np.ndarray, reach: np.ndarray, off: np.ndarray) -> dict[str, np.ndarray]:
    """Return half-spaces in float32 whose slack, as it is computed, is not below 0 on a polytope inside the exact one.

    That polytope has the served offsets less `of_rows`; it is smaller than the exact one by what rounding takes.
    """
    served = normals.astype(np.float32)
    lost = np.abs(normals - served) @ reach
    slack = of_rows(served.astype(np.float64), offsets, reach, off)
    moved = (offsets - lost + slack / ROOM).astype(np.float32)
    return {"normals": served, "offsets": np.nextafter(moved, np.float32(-np.inf))}


def serve_boxes(low: np.ndarray, high: np.ndarray, off: np.ndarray) -> dict[str, np.ndarray]:
    """Return boxes in float32, (R, n), that hold, as they are computed, wherever the exact ones do.

    Args:
      low, high: (R, n).
      off: (n,), see `of_coordinates`.
    """
    return {
        "low": np.nextafter((low - off).astype(np.float32), np.float32(-np.inf)),
        "high": np.nextafter((high + off).astype(np.float32), np.float32(np.inf)),
    }


def _share(n: int) -> float:
    """Return the relative error of a sum of n products, a difference before and a few sums after it."""
    k = (n + 4) * EPS
    return k / (1 - k)

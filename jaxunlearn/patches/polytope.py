"""Bounded polytopes: half-spaces cut with a box. Linear programmes by HiGHS (`scipy.optimize.linprog`), float64."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import linprog


@dataclasses.dataclass(frozen=True, eq=False)
class Polytope:
    """``{x : normals x <= offsets, low <= x <= high}``.

    Attributes:
      normals, offsets: (m, n) and (m,); m may be 0.
      low, high: (n,) finite box.
    """

    normals: np.ndarray
    offsets: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """The number of half-spaces, those of the box included."""
        return len(self.offsets) + 2 * len(self.low)

    def slacks(self, x: np.ndarray) -> np.ndarray:
        """Return how far points lie inside each half-space, then inside high and low, (batch, m + 2 n)."""
        return np.concatenate([self.offsets - x @ self.normals.T, self.high - x, x - self.low], axis=1)

    def contains(self, x: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
        """Return for each point, (batch, n), whether it lies inside."""
        return np.all(self.slacks(x) >= -tolerance, axis=1)

    def largest(self, direction: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the largest ``direction x`` on the polytope and a point where it is taken.

        Raises:
          ValueError: the polytope is empty.

        >>> unit = Polytope(np.ones((1, 2)), np.ones(1), np.zeros(2), np.ones(2))
        >>> unit.largest(np.array([1.0, 2.0]))[0]
        2.0
        """
        if not len(self.offsets):
            corner = np.where(direction > 0, self.high, self.low)
            return float(direction @ corner), corner
        found = linprog(
            -direction, self.normals, self.offsets, bounds=np.stack([self.low, self.high], axis=1), method="highs"
        )
        if found.x is None:
            raise ValueError(f"the polytope has no largest value: {found.message}")
        return float(direction @ found.x), found.x

    def at_most(self, direction: np.ndarray, limit: float) -> float:
        """Return a bound on the largest ``direction x``: tight, or cheap and not above the limit.

        It is sound whatever the tolerance of the linear programme: for all multipliers w >= 0 the largest value
        is no more than ``w offsets`` and the largest of ``direction - w normals`` on the box (weak duality).
        """
        bound = float(self.over_box(direction[None])[0])
        if bound <= limit or not len(self.offsets):
            return bound
        found = linprog(
            -direction, self.normals, self.offsets, bounds=np.stack([self.low, self.high], axis=1), method="highs"
        )
        if found.x is None:
            return bound
        w = np.maximum(-found.ineqlin.marginals, 0)
        return min(bound, float(w @ self.offsets + self.over_box((direction - w @ self.normals)[None])[0]))

    def over_box(self, directions: np.ndarray) -> np.ndarray:
        """Return a bound on the largest of each direction, (k,): its largest value on the box alone."""
        return np.maximum(directions * self.low, directions * self.high).sum(axis=1)

    def centre(self) -> tuple[np.ndarray, float]:
        """Return the centre and radius of the largest ball inside (Chebyshev); a radius of 0 means no inside.

        Raises:
          ValueError: the polytope is empty.
        """
        n = len(self.low)
        size = np.linalg.norm(self.normals, axis=1)
        eye, ones = np.eye(n), np.ones((n, 1))
        rows = np.block([[self.normals, size[:, None]], [eye, ones], [-eye, ones]])
        bounds = np.concatenate([self.offsets, self.high, -self.low])
        found = linprog(np.r_[np.zeros(n), -1.0], rows, bounds, bounds=[(None, None)] * n + [(0, None)], method="highs")
        if found.x is None:
            raise ValueError("the polytope is empty")
        return found.x[:n], float(found.x[n])

    def trimmed(self, tolerance: float = 1e-9) -> Polytope:
        """Return the same polytope without half-spaces that hold the whole of its box."""
        keep = self.over_box(self.normals) > self.offsets - tolerance
        return dataclasses.replace(self, normals=self.normals[keep], offsets=self.offsets[keep])

    def sample(self, rng: np.random.RandomState, start: np.ndarray, n: int, *, thin: int = 8) -> np.ndarray:
        """Return points of a hit-and-run walk, (n, dim): from each point a random line, a uniform place on it.

        Args:
          rng: source of randomness.
          start: a point inside.
          n: number of points.
          thin: steps between two points that are kept.
        """
        x = np.asarray(start, np.float64)
        out = np.empty((n, len(x)))
        slack = self.slacks(x[None])[0]
        for i in range(n * thin):
            d = rng.randn(len(x))
            d /= np.linalg.norm(d)
            speed = np.concatenate([self.normals @ d, d, -d])
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.maximum(slack, 0) / speed
            ahead = reach[speed > 0].min(initial=np.inf)
            behind = reach[speed < 0].max(initial=-np.inf)
            step = rng.uniform(behind, ahead)
            x = np.clip(x + step * d, self.low, self.high)
            slack = self.slacks(x[None])[0] if i % 64 == 63 else slack - step * speed
            if i % thin == thin - 1:
                out[i // thin] = x
        return out

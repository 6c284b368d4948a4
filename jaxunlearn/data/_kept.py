"""Decoded images, kept while they are few."""

from __future__ import annotations

import threading

import numpy as np


class Kept:
    """Read rows of uint8 images of one shape; what was decoded once is kept where all of them fit into a limit.

    A subclass has ``_decode(rows) -> (len(rows), *shape)``. May be called from several threads.
    """

    def __init__(self, total: int, shape: tuple[int, ...], limit: int) -> None:
        """Hold nothing yet.

        Args:
          total: images there are.
          shape: of each.
          limit: bytes up to which they are kept; above it each read decodes anew.
        """
        self._shape = shape
        self._lock = threading.Lock()
        self.keeps = total * int(np.prod(shape)) <= limit
        # Pages are committed when they are written.
        self._kept = np.empty((total, *shape), np.uint8) if self.keeps else None
        self._have = np.zeros(total, bool)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of some rows."""
        if self._kept is None:
            return self._decode(rows)
        with self._lock:
            missing = np.unique(rows[~self._have[rows]])
            if len(missing):
                self._kept[missing] = self._decode(missing)
                self._have[missing] = True
        return self._kept[rows]

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

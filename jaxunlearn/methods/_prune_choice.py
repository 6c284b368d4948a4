"""Who is forgotten, who is patched together, by whom they are represented, and which label they get."""

from __future__ import annotations

import warnings

import jax
import numpy as np
from scipy.cluster.vq import kmeans2

from jaxunlearn._types import Array, Batch
from jaxunlearn.methods._prune_versions import Spread


def relabelled(batch: Batch, goal: str, earlier: int) -> np.ndarray:
    """Return which instances are to get their target: by the goal, those of earlier requests if they have one."""
    target = np.asarray(batch.target)
    return np.where(np.arange(len(target)) >= len(target) - earlier, target >= 0, goal == "relabel")


def met(logits: np.ndarray, batch: Batch, goal: str, earlier: int) -> np.ndarray:
    """Return which instances are forgotten."""
    said = logits.argmax(axis=1)
    met = np.where(relabelled(batch, goal, earlier), said == np.asarray(batch.target), said != np.asarray(batch.y))
    return np.isfinite(logits).all(axis=1) & met


def split(at: np.ndarray, mine: np.ndarray, parts: int) -> list[np.ndarray]:
    """Return k-means clusters of some instances, the largest first."""
    if parts >= len(mine):
        return [mine[i : i + 1] for i in range(len(mine))]
    if parts == 1:
        return [mine]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an empty cluster: it is left out
        tries = [kmeans2(at[mine], parts, minit="++", rng=seed) for seed in range(10)]
    spreads = [np.linalg.norm(at[mine] - centre[which], axis=1).sum() for centre, which in tries]
    which = tries[int(np.argmin(spreads))][1]
    return sorted((mine[which == part] for part in np.unique(which)), key=len, reverse=True)


def other_label(rule: str, logits: np.ndarray, never: set[int], key: Array) -> int:
    """Return a label that is none of some: the strongest, or a random one (the next free one, as published)."""
    free = [label for label in range(len(logits)) if label not in never]
    if not free:
        raise ValueError("a cluster's instances have every label there is: ask for more clusters")
    if rule == "runner-up":
        return max(free, key=lambda label: float(logits[label]))
    drawn = int(jax.random.randint(key, (), 0, len(logits)))
    return next(label for label in ((drawn + step) % len(logits) for step in range(len(logits))) if label in free)


def representatives(where: Spread, mine: np.ndarray) -> np.ndarray:
    """Return instances whose boxes hold all others, in the order given."""
    chosen: list[int] = []
    for i in mine:
        if not any(np.abs(where.at[i] - where.at[j]).max() < 0.99 * where.radius[j] for j in chosen):
            chosen.append(int(i))
    return np.array(chosen)

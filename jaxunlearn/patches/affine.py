"""Affine patches: the smallest affine change of the logits under which they meet a specification on polytopes.

On a region the logits are ``F x + d``. A patch ``p(x) = c x + e`` is sought with
``P (F x + d + p(x)) <= q`` everywhere on it (Fu & Li 2022; a linear programme by
duality), in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.optimize import linprog

from jaxunlearn.patches.polytope import Polytope


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A polytope and the logits on it.

    Attributes:
      polytope: in n coordinates.
      slope, shift: F and d, (C, n) and (C,).
    """

    polytope: Polytope
    slope: np.ndarray
    shift: np.ndarray


class AffinePatch(NamedTuple):
    """``p(x) = slope x + shift``; tau is a bound on every |p_k| over the regions it was made for."""

    slope: np.ndarray
    shift: np.ndarray
    tau: float


class Specification(NamedTuple):
    """``low <= P y <= high`` for the logits y, row by row.

    Attributes:
      rows: P, (r, C).
      low, high: (r,); only the interval rule looks at low.
    """

    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray


def label_is(target: int, num_classes: int, margin: float = 0.0, depth: float = 100.0) -> Specification:
    """Return "every other logit lies at least ``margin`` and at most ``depth`` below the target's".

    >>> label_is(1, 3, 0.5).rows.tolist()
    [[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]]
    """
    rows = np.delete(np.eye(num_classes) - np.eye(num_classes)[target], target, axis=0)
    return Specification(rows, np.full(len(rows), -depth), np.full(len(rows), -margin))


def smallest(regions: Sequence[Region], spec: Specification) -> AffinePatch:
    """Return the affine patch with the least tau that meets the upper side of a specification on every region.

    For each region with rows A x <= b (those of its box among them), each output k and sign there
    are multipliers u >= 0 with ``A' u = +-c_k`` and ``b u +- e_k <= tau``, and for each row of the
    specification w >= 0 with ``A' w = (P_r (F + c))'`` and ``b w + P_r (d + e) <= q_r``: exact, with
    C n + C + 1 variables and (2 C + r) m more a region.

    Raises:
      ValueError: HiGHS found no solution; its message says why.
    """
    classes, n = regions[0].slope.shape
    count = classes * n + classes + 1
    directions = np.concatenate([np.eye(classes), -np.eye(classes), spec.rows])
    k, outputs = len(directions), 2 * classes
    ends = count + np.cumsum([k * region.polytope.size for region in regions])
    equal, equal_to, below, below_to = [], [], [], []
    for region, end in zip(regions, ends, strict=True):
        normals, offsets = _rows(region.polytope)
        own = k * len(offsets)
        gap = (end - own - count, ends[-1] - end)
        slopes = -sparse.kron(sparse.csr_array(directions), sparse.eye_array(n), format="csr")
        multipliers = sparse.kron(sparse.eye_array(k), normals.T, format="csr")
        equal.append(sparse.hstack([slopes, _none(k * n, classes + 1 + gap[0]), multipliers, _none(k * n, gap[1])]))
        equal_to += [np.zeros(outputs * n), (spec.rows @ region.slope).ravel()]
        shifts = sparse.csr_array(np.column_stack([directions, np.r_[-np.ones(outputs), np.zeros(k - outputs)]]))
        values = sparse.kron(sparse.eye_array(k), offsets[None], format="csr")
        below.append(sparse.hstack([_none(k, classes * n), shifts, _none(k, gap[0]), values, _none(k, gap[1])]))
        below_to += [np.zeros(outputs), spec.high - spec.rows @ region.shift]
    free = count - 1
    return _solve(classes, n, ends[-1], free, below, below_to, equal, equal_to)


def smallest_on_boxes(regions: Sequence[Region], spec: Specification) -> AffinePatch:
    """Return the patch of `smallest` for the boxes of the regions alone, which must share their logits.

    The largest value of a linear function on a box is in closed form, so that the
    regions share their multipliers: (2 C + r) n of them however many regions there are.
    """
    slope, shift = regions[0].slope, regions[0].shift
    classes, n = slope.shape
    r = len(spec.rows)
    middle = np.array([(region.polytope.high + region.polytope.low) / 2 for region in regions])
    half = np.array([(region.polytope.high - region.polytope.low) / 2 for region in regions])
    every, eye, outputs, rows = np.ones((len(regions), 1)), sparse.eye_array(n), np.eye(classes), spec.rows
    # Columns: c by output, e, tau, |c| by output, |P (F + c)| by row of the specification.
    below, below_to = [], []
    for sign in (1.0, -1.0):
        size = -sparse.eye_array(classes * n)
        below.append([sign * sparse.eye_array(classes * n), None, None, size, None])
        below_to.append(np.zeros(classes * n))
        turned = sparse.kron(sign * sparse.csr_array(rows), eye)
        below.append([turned, None, None, None, -sparse.eye_array(r * n)])
        below_to.append(-sign * (rows @ slope).ravel())
        tau = -np.ones((classes * len(regions), 1))
        below.append(
            [sign * np.kron(outputs, middle), sign * np.kron(outputs, every), tau, np.kron(outputs, half), None]
        )
        below_to.append(np.zeros(classes * len(regions)))
    meets = [np.kron(rows, middle), np.kron(rows, every), None, None, np.kron(np.eye(r), half)]
    below.append(meets)
    here = rows @ (slope @ middle.T + shift[:, None])
    below_to.append((spec.high[:, None] - here).ravel())
    widths = (classes * n, classes, 1, classes * n, r * n)
    blocks = [
        sparse.hstack(
            [
                _none(len(to), width) if part is None else sparse.csr_array(part)
                for part, width in zip(row, widths, strict=True)
            ]
        )
        for row, to in zip(below, below_to, strict=True)
    ]
    return _solve(classes, n, sum(widths), classes * n + classes, blocks, below_to)


def interval_rule(regions: Sequence[Region], spec: Specification) -> AffinePatch:
    """Return the patch that shrinks and shifts each row of the specification into its interval; not the smallest.

    With P completed to a square matrix by an orthonormal basis of its null space (PRUNE-8), [lb, ub]
    the range of P_r F x over the regions and t = P_r d ::

        alpha = min(1, (qu - ql) / (ub - lb))
        beta = ql - alpha (lb + t) if that is above 0, qu - alpha (ub + t) if that is below 0, else 0

    (PRUNE-7 has ``alpha lb + t`` there), and p such that ``P (f + p) = alpha P f + beta`` row by row.
    The regions must share their logits.
    """
    slope, shift = regions[0].slope, regions[0].shift
    square = np.concatenate([spec.rows, linalg.null_space(spec.rows).T])
    across, t = spec.rows @ slope, spec.rows @ shift
    top = np.max([[region.polytope.largest(row)[0] for row in across] for region in regions], axis=0)
    bottom = -np.max([[region.polytope.largest(-row)[0] for row in across] for region in regions], axis=0)
    alpha = np.minimum(1.0, (spec.high - spec.low) / np.maximum(top - bottom, np.finfo(float).tiny))
    beta = np.maximum(spec.low - alpha * (bottom + t), 0) + np.minimum(spec.high - alpha * (top + t), 0)
    more = len(square) - len(alpha)
    inverse = np.linalg.inv(square)
    moved = inverse @ (np.r_[alpha, np.ones(more)][:, None] * square) - np.eye(len(square))
    c, e = moved @ slope, moved @ shift + inverse @ np.r_[beta, np.zeros(more)]
    return AffinePatch(c, e, size_of(c, e, [region.polytope for region in regions]))


def size_of(slope: np.ndarray, shift: np.ndarray, polytopes: Sequence[Polytope], limit: float = -np.inf) -> float:
    """Return the largest |p_k| on polytopes of ``p(x) = slope x + shift``, or a bound on it up to a limit."""
    return max(
        sign * shift[k] + polytope.at_most(sign * row, limit - sign * shift[k])
        for polytope in polytopes
        for k, row in enumerate(slope)
        for sign in (1.0, -1.0)
    )


def _rows(polytope: Polytope) -> tuple[sparse.csr_array, np.ndarray]:
    eye = sparse.eye_array(len(polytope.low))
    rows = sparse.vstack([sparse.csr_array(polytope.normals), eye, -eye], format="csr")
    return rows, np.concatenate([polytope.offsets, polytope.high, -polytope.low])


def _none(rows: int, columns: int) -> sparse.csr_array:
    return sparse.csr_array((rows, int(columns)))


def _solve(
    classes: int,
    n: int,
    size: int,
    free: int,
    below: Sequence[Any],
    below_to: Sequence[np.ndarray],
    equal: Sequence[Any] = (),
    equal_to: Sequence[np.ndarray] = (),
) -> AffinePatch:
    """Minimise tau, the variable after c and e; the first ``free`` variables have no sign."""
    cost = np.zeros(size)
    cost[classes * (n + 1)] = 1
    bounds = np.tile([0.0, np.inf], (size, 1))
    bounds[:free, 0] = -np.inf
    constraints: tuple[Any, ...] = (sparse.vstack(below, format="csr"), np.concatenate(below_to))
    if equal:
        constraints += (sparse.vstack(equal, format="csr"), np.concatenate(equal_to))
    # The interior point method is ten times faster here than the simplex method, and ends on a vertex all the same.
    found = linprog(cost, *constraints, bounds=bounds, method="highs-ipm")
    if found.x is None:
        raise ValueError(f"no affine patch was found: {found.message}")
    slope = found.x[: classes * n].reshape(classes, n)
    return AffinePatch(slope, found.x[classes * n : classes * (n + 1)], float(found.x[classes * (n + 1)]))

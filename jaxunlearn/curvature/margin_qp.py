"""The smallest change of a function under margin constraints: a quadratic programme in its dual, float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import nnls

from jaxunlearn import _validate


class InfeasibleError(ValueError):
    """No change of the weights meets all constraints at once, to first order.

    Attributes:
      rows: indices of the constraints that contradict each other.
    """

    def __init__(self, rows: np.ndarray, message: str | None = None):
        self.rows = rows
        super().__init__(message or f"the margin constraints {rows.tolist()} cannot hold together, to first order")


class MarginStep(NamedTuple):
    """Solution of `solve_margin_qp`; the step is ``d = -(A^T constraint_weight + R^T proxy_weight)``.

    Attributes:
      multiplier: Lagrange multipliers, (k,), at least 0.
      constraint_weight: (k,).
      proxy_weight: (N,).
      change: predicted change ``A d`` of the constrained scalars, (k,).
    """

    multiplier: np.ndarray
    constraint_weight: np.ndarray
    proxy_weight: np.ndarray
    change: np.ndarray


def solve_margin_qp(
    proxy_gram: np.ndarray,
    cross_gram: np.ndarray,
    constraint_gram: np.ndarray,
    drift: np.ndarray,
    required: np.ndarray,
    *,
    damping: float,
    ridge: float = 1e-6,
) -> MarginStep:
    """Minimise ``|drift + R d|^2 / 2 + damping |d|^2 / 2`` over d, subject to ``A d <= -required``.

    R (N proxy rows) and A (k constraint rows) enter by their Gram matrices
    only, so nothing of the size of d is formed. The dual in the k multipliers is
    a non-negative least-squares problem.

    Args:
      proxy_gram: R R^T, (N, N); N may be 0, then ``damping`` has no influence on d.
      cross_gram: R A^T, (N, k).
      constraint_gram: A A^T, (k, k).
      drift: residual of the proxies at d = 0, (N,).
      required: by how much each constrained scalar must fall, (k,); where
        negative, by how much it may rise.
      damping: weight of the squared norm of d, above 0, absolute.
      ridge: added to the dual matrix, relative to its mean diagonal; absorbs
        the rounding of float32 Gram matrices.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, damping or ridge out of range.
      InfeasibleError: constraints contradict each other.

    >>> step = solve_margin_qp(np.zeros((0, 0)), np.zeros((0, 1)), np.array([[2.0]]), np.zeros(0),
    ...                        np.array([3.0]), damping=1.0, ridge=0.0)
    >>> step.change.round(9).tolist(), step.constraint_weight.round(9).tolist()
    ([-3.0], [1.5])
    """
    n, k = np.shape(cross_gram)
    arrays = [np.asarray(a, np.float64) for a in (proxy_gram, cross_gram, constraint_gram, drift, required)]
    for name, array, shape in zip(
        ("proxy_gram", "cross_gram", "constraint_gram", "drift", "required"),
        arrays,
        ((n, n), (n, k), (k, k), (n,), (k,)),
        strict=True,
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}; got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has NaN or infinite entries")
    proxy, cross, constraint, drift, required = arrays
    _validate.in_range("damping", damping, np.finfo(np.float64).tiny)
    _validate.in_range("ridge", ridge, 0.0)

    factor = cho_factor(proxy + damping * np.eye(n), lower=True) if n else None
    solved = cho_solve(factor, np.column_stack([cross, drift])) if n else np.zeros((0, k + 1))
    projected, pull = solved[:, :k], solved[:, k]
    dual = (constraint - cross.T @ projected) / damping
    multiplier = _dual(dual, required - cross.T @ pull, ridge)
    constraint_weight = multiplier / damping
    proxy_weight = pull - projected @ constraint_weight
    change = -(constraint @ constraint_weight + cross.T @ proxy_weight)
    return MarginStep(multiplier, constraint_weight, proxy_weight, change)


def _dual(matrix: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """Return argmin over l >= 0 of ``l^T M l / 2 - target^T l``."""
    k = len(target)
    if not (target > 0).any():
        return np.zeros(k)
    added = ridge * max(float(np.mean(np.diag(matrix))), np.finfo(np.float64).tiny)
    lower = _cholesky(matrix, added)
    multiplier = cho_solve((lower, True), target)
    if (multiplier < 0).any():  # else every constraint is active and this is the answer
        multiplier = nnls(lower.T, solve_triangular(lower, target, lower=True), maxiter=30 * k)[0]
    # Contradicting constraints leave the dual unbounded but for the ridge: little of the curvature is the problem's.
    if multiplier @ matrix @ multiplier < added * (multiplier @ multiplier):
        raise InfeasibleError(np.flatnonzero(multiplier > 0.1 * multiplier.max()))
    return multiplier


def _cholesky(matrix: np.ndarray, added: float) -> np.ndarray:
    for _ in range(4):  # rounding of float32 Gram matrices can exceed the ridge
        try:
            return cholesky(matrix + added * np.eye(len(matrix)), lower=True)
        except np.linalg.LinAlgError:
            added *= 10
    raise InfeasibleError(np.arange(len(matrix)))

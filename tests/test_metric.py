"""The Kronecker metric against explicit sums over stored rows and explicit matrices on flattened weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn import curvature
from jaxunlearn.curvature import metric as metrics
from tests.tiny import convolutional, convolutional_variables

PATHS = ("conv1", "dense", "shift")  # a 4-D kernel, a matrix, a vector
FN = curvature.LogitDirection(convolutional)


@pytest.fixture(scope="module")
def net():
    params, model_state = convolutional_variables(jax.random.key(0))
    rng = np.random.default_rng(0)
    examples = rng.normal(size=(7, 5, 5, 2)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    rows = curvature.Jacobian(FN, PATHS, 8).rows(params, model_state, examples).astype(np.float64)
    return params, model_state, examples, rows


def matrices(rows, params, path):
    """Return each row's part of one tensor as a matrix (all axes but the last, last)."""
    grads = [curvature.unravel(row, params, PATHS)[path] for row in rows]
    return np.stack([grad.reshape(-1, grad.shape[-1]) for grad in grads])


def dense(factor):
    return np.asarray(factor, np.float64) if factor.ndim == 2 else np.diag(np.asarray(factor, np.float64))


def explicit(metric, paths=PATHS):
    """Return S^(-1/2) on flattened weights."""
    blocks = [np.kron(*map(dense, metric[path])) for path in paths]
    out = np.zeros([sum(map(len, blocks))] * 2)
    start = 0
    for block in blocks:
        out[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return out


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("microbatch_size", [1, 3, 7, 16])
def test_second_moments_are_means_over_stored_rows(net, microbatch_size):
    params, model_state, examples, rows = net
    moments = curvature.second_moments(curvature.Jacobian(FN, PATHS, microbatch_size), params, model_state, examples)
    assert tuple(moments) == PATHS
    for path, (left, right) in moments.items():
        g = matrices(rows, params, path)
        assert relative(left, sum(a @ a.T for a in g) / 7) < 1e-5
        assert relative(right, sum(a.T @ a for a in g) / 7) < 1e-5


def test_long_sides_get_the_diagonals(net, monkeypatch):
    params, model_state, examples, rows = net
    monkeypatch.setattr(metrics, "MAX_SIDE", 5)
    jacobian = curvature.Jacobian(lambda *a: FN(*a), PATHS, 4)  # another function: what is compiled keeps its sides
    moments = curvature.second_moments(jacobian, params, model_state, examples)
    assert {path: (a.ndim, b.ndim) for path, (a, b) in moments.items()} == {
        "conv1": (1, 2),  # 18 x 5
        "dense": (1, 2),  # 6 x 4
        "shift": (2, 2),  # 1 x 5
    }
    left = moments["conv1"][0]
    assert relative(left, sum(np.diag(a @ a.T) for a in matrices(rows, params, "conv1")) / 7) < 1e-5
    monkeypatch.setattr(metrics, "MAX_SIDE", 4)
    jacobian = curvature.Jacobian(lambda *a: FN(*a), PATHS, 4)
    moments = curvature.second_moments(jacobian, params, model_state, examples)
    right = moments["shift"][1]
    assert relative(right, sum(np.diag(a.T @ a) for a in matrices(rows, params, "shift")) / 7) < 1e-5
    ridge = 0.1  # the root of a diagonal is that of the matrix
    root = curvature.inverse_root(moments, ridge=ridge)
    full = {path: tuple(dense(factor).astype(np.float32) for factor in pair) for path, pair in moments.items()}
    assert relative(explicit(root), explicit(curvature.inverse_root(full, ridge=ridge))) < 1e-5


def test_a_scalar_parameter_is_a_matrix_of_one(net):
    params = {"scale": jnp.float32(2.0)}
    jacobian = curvature.Jacobian(lambda p, _, x: p["scale"] * x, ("scale",), 2)
    moments = curvature.second_moments(jacobian, params, None, np.array([1.0, 2.0, 4.0], np.float32))
    assert [factor.tolist() for factor in moments["scale"]] == [[[7.0]], [[7.0]]]
    scaled = curvature.scale(curvature.inverse_root(moments, ridge=1e-9), {"scale": jnp.float32(1.0)})
    assert scaled["scale"].shape == ()
    np.testing.assert_allclose(scaled["scale"], 7**-0.5, rtol=1e-6)


def random_moments(seed, rows, columns, examples=6):
    g = np.random.default_rng(seed).normal(size=(examples, rows, columns)).astype(np.float32)
    return np.einsum("nrc,nsc->rs", g, g) / examples, np.einsum("nrc,nrd->cd", g, g) / examples


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 6), columns=st.integers(1, 6), ridge=st.floats(1e-2, 10))
@settings(max_examples=60, deadline=None)
def test_inverse_root_inverts_the_explicit_kronecker_product(seed, rows, columns, ridge):
    left, right = random_moments(seed, rows, columns)
    trace = np.trace(left, dtype=np.float64)
    damped = [a + ridge * np.trace(a, dtype=np.float64) / len(a) * np.eye(len(a)) for a in (left, right)]
    S = np.kron(*damped) / trace
    metric = curvature.inverse_root({"w": (left, right)}, ridge=ridge)
    assert {factor.dtype for factor in metric["w"]} == {jnp.dtype(jnp.float32)}
    W = explicit(metric, ("w",))
    np.testing.assert_allclose(W, W.T, atol=1e-5 * np.abs(W).max())
    np.testing.assert_allclose(W @ S @ W, np.eye(len(S)), atol=2e-4)
    # Units: S has the trace of the second moment, (1 + ridge)^2 times; gradients twice as long make W half as large.
    np.testing.assert_allclose(np.trace(S), (1 + ridge) ** 2 * trace, rtol=1e-5)
    longer = curvature.inverse_root({"w": (4 * left, 4 * right)}, ridge=ridge)
    np.testing.assert_allclose(explicit(longer, ("w",)), W / 2, rtol=1e-4, atol=1e-5 * np.abs(W).max())


def test_the_metric_keeps_the_scale_of_tensors_against_each_other(net):
    params, model_state, examples, rows = net
    moments = curvature.second_moments(curvature.Jacobian(FN, PATHS, 3), params, model_state, examples)
    for path, factors in curvature.inverse_root(moments, ridge=0.1).items():
        W = np.kron(*map(dense, factors))
        second_moment = np.sum(matrices(rows, params, path) ** 2) / 7
        np.testing.assert_allclose(np.trace(np.linalg.inv(W @ W)), 1.1**2 * second_moment, rtol=1e-3)


def test_without_gradients_the_metric_is_the_identity():
    zero = {"w": (np.zeros((3, 3), np.float32), np.zeros(2, np.float32)), "v": random_moments(0, 3, 2)}
    metric = curvature.inverse_root(zero)
    tensors = {"w": jnp.arange(6.0).reshape(3, 2), "v": jnp.ones((3, 2))}
    scaled = curvature.scale(metric, tensors)
    np.testing.assert_array_equal(scaled["w"], tensors["w"])
    assert not np.allclose(scaled["v"], tensors["v"])


@pytest.mark.parametrize("ridge", [0.0, -1e-2, float("nan"), float("inf")])
def test_ridge_must_be_above_zero(ridge):
    with pytest.raises(ValueError, match=f"ridge must be at least .*; got {ridge}"):
        curvature.inverse_root({"w": random_moments(0, 2, 2)}, ridge=ridge)


@pytest.mark.parametrize("max_side", [1024, 5])
def test_whitened_rows_are_plain_rows_in_other_coordinates(net, monkeypatch, max_side):
    params, model_state, examples, rows = net
    monkeypatch.setattr(metrics, "MAX_SIDE", max_side)
    plain = curvature.Jacobian(lambda *a: FN(*a), PATHS, 3)
    metric = curvature.inverse_root(curvature.second_moments(plain, params, model_state, examples))
    W = explicit(metric)
    whitened = curvature.Jacobian(curvature.Whitened(plain.fn), PATHS, 3)
    part = curvature.Part(curvature.origin(params, PATHS), (params, model_state, metric), examples)
    white = whitened.rows(*part)
    assert relative(white, rows @ W) < 1e-5
    assert relative(curvature.gram(whitened, part, max_bytes=7 * 4 * 40), rows @ W @ W @ rows.T) < 1e-5

    # S^(-1) J^T w, with the products of both coordinates
    w = np.random.default_rng(1).normal(size=7).astype(np.float32)
    there = whitened.transpose_times(*part, w)
    back = curvature.scale(metric, there)
    back, there = (np.concatenate([np.ravel(a[path]) for path in PATHS]) for a in (back, there))
    assert relative(there, w @ white) < 1e-5
    assert relative(back, W @ W @ (w @ rows)) < 1e-5


def test_whitened_functions_are_the_function_at_moved_weights(net):
    params, model_state, (x, v), _ = net
    moments = curvature.second_moments(curvature.Jacobian(FN, PATHS, 3), params, model_state, (x, v))
    metric = curvature.inverse_root(moments)
    origin = curvature.origin(params, PATHS)
    assert {path: leaf.shape for path, leaf in origin.items()} == {path: params[path].shape for path in PATHS}
    context, example = (params, model_state, metric), (jnp.asarray(x[0]), jnp.asarray(v[0]))
    np.testing.assert_allclose(
        curvature.Whitened(FN)(origin, context, example), FN(params, model_state, example), rtol=1e-6
    )
    d = jax.tree.map(lambda leaf: leaf + 0.1, origin)
    flat = explicit(metric) @ np.concatenate([np.ravel(d[path]) for path in PATHS])
    moved = {path: params[path] + step for path, step in curvature.unravel(np.float32(flat), params, PATHS).items()}
    there = FN(params | moved, model_state, example)
    assert abs(there - FN(params, model_state, example)) > 1e-3
    np.testing.assert_allclose(curvature.Whitened(FN)(d, context, example), there, rtol=1e-4)
    assert curvature.Whitened(FN) == curvature.Whitened(curvature.LogitDirection(convolutional))  # shared compilations

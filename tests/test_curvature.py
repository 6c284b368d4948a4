"""Jacobians, Gram matrices and the margin programme against finite differences, enumeration and closed forms."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn import curvature
from jaxunlearn.curvature import Jacobian, solve_margin_qp


def conv_net(params, model_state, x, *, train=False, rngs=None):
    h = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.softplus(h + params["conv"]["bias"][None, None, None])
    return h.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"][None], model_state


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {
        "conv": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
        "head": {"kernel": draw(4, 3), "bias": draw(3)},
    }
    examples = (np.asarray(draw(7, 5, 5, 2)), np.asarray(draw(7, 3)))
    return params, examples


def jacobian(params, *, microbatch_size=3, patterns=()):
    return Jacobian(curvature.LogitDirection(conv_net), curvature.select_paths(params, patterns), microbatch_size)


def test_selection_takes_kernels_or_what_is_named(net):
    params, _ = net
    assert curvature.select_paths(params) == ("conv/kernel", "head/kernel")
    assert curvature.select_paths(params, ["head/*", "*/bias"]) == ("conv/bias", "head/bias", "head/kernel")
    assert curvature.width(params, ("conv/kernel", "head/kernel")) == 3 * 3 * 2 * 4 + 12
    with pytest.raises(ValueError, match=r"no parameter matches 'layer3\*'; the network has conv/bias"):
        curvature.select_paths(params, ["layer3*"])
    with pytest.raises(ValueError, match="no parameter has two axes or more"):
        curvature.select_paths({"bias": jnp.zeros(3)})


def test_put_leaves_the_rest_alone(net):
    params, _ = net
    new = curvature.put(params, {"head/kernel": jnp.zeros((4, 3))})
    assert new["conv"]["kernel"] is params["conv"]["kernel"]
    assert not new["head"]["kernel"].any()


def test_unravel_undoes_the_order_of_rows(net):
    params, _ = net
    paths = ("head/bias", "conv/kernel")
    chosen = curvature.take(params, paths)
    flat = np.concatenate([np.ravel(leaf) for leaf in chosen.values()])
    for path, leaf in curvature.unravel(flat, params, paths).items():
        np.testing.assert_array_equal(leaf, chosen[path])


def test_rows_equal_finite_differences(net):
    params, (x, v) = net
    rows = jacobian(params).rows(params, {}, (x, v))
    rng = np.random.default_rng(1)
    direction = rng.normal(size=rows.shape[1]) / 10
    paths = curvature.select_paths(params)
    step = curvature.unravel(direction, params, paths)

    def value(t):
        with jax.enable_x64(True):
            moved = {
                path: np.asarray(leaf, np.float64) + t * step[path]
                for path, leaf in curvature.take(params, paths).items()
            }
            merged = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), curvature.put(params, moved))
            return np.asarray(
                jnp.sum(conv_net(merged, {}, jnp.asarray(x, jnp.float64))[0] * jnp.asarray(v, jnp.float64), axis=1)
            )

    np.testing.assert_allclose(rows @ direction, (value(1e-5) - value(-1e-5)) / 2e-5, rtol=2e-4, atol=1e-5)


def test_microbatch_size_and_order_change_nothing_but_rounding(net):
    params, (x, v) = net
    one = jacobian(params, microbatch_size=16).rows(params, {}, (x, v))
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    two = jacobian(params, microbatch_size=2).rows(params, {}, (x[order], v[order]))
    np.testing.assert_allclose(two, one[order], rtol=1e-5, atol=1e-6)
    buffer = np.full_like(two, np.nan)
    assert jacobian(params).rows(params, {}, (x[order], v[order]), out=buffer) is buffer
    np.testing.assert_allclose(buffer, two, rtol=1e-5, atol=1e-6)


def test_a_scalar_function_of_any_example_serves(net):
    params = {"w": jnp.arange(3.0)}
    rows = Jacobian(lambda p, c, e: c * jnp.sum(p["w"] ** 2 * e["x"]), ("w",), 2).rows(
        params, 3.0, {"x": np.eye(3, dtype=np.float32)}
    )
    np.testing.assert_allclose(rows, np.diag([0.0, 6.0, 12.0]))


def test_products_equal_stored_rows(net):
    params, examples = net
    jac = jacobian(params)
    rows = jac.rows(params, {}, examples)
    rng = np.random.default_rng(2)
    d, w = rng.normal(size=rows.shape[1]).astype(np.float32), rng.normal(size=7)
    np.testing.assert_allclose(
        jac.times(params, {}, examples, curvature.unravel(d, params, jac.paths)), rows @ d, rtol=1e-4, atol=1e-4
    )
    back = jac.transpose_times(params, {}, examples, w)
    np.testing.assert_allclose(
        np.concatenate([np.ravel(back[path]) for path in jac.paths]), w @ rows, rtol=1e-4, atol=1e-4
    )


def test_any_number_of_examples_is_one_compilation(net):
    params, (x, v) = net
    traces = []

    def counted(p, context, example):
        traces.append(1)
        return curvature.LogitDirection(conv_net)(p, context, example)

    jac = Jacobian(counted, curvature.select_paths(params), 4)
    for n in (7, 3, 5, 1):
        jac.rows(params, {}, (x[:n], v[:n]))
        jac.transpose_times(params, {}, (x[:n], v[:n]), np.ones(n))
    assert len(traces) == 2  # one for rows, one for the transpose


def test_per_example_grad_goes_into_any_jit(net):
    params, (x, v) = net
    jac = jacobian(params)
    grads = jax.jit(curvature.per_example_grad(jac.fn, jac.paths))(params, {}, (jnp.asarray(x), jnp.asarray(v)))
    flat = np.concatenate([np.asarray(grads[path]).reshape(7, -1) for path in jac.paths], axis=1)
    np.testing.assert_allclose(flat, jac.rows(params, {}, (x, v)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_bytes", [7 * 4 * 5, 7 * 4 * 80, 1 << 20])
def test_gram_without_rows_equals_stored(net, max_bytes):
    params, examples = net
    jac = jacobian(params)
    rows = jac.rows(params, {}, examples).astype(np.float64)
    stored = curvature.inner_products(jac.rows(params, {}, examples))
    np.testing.assert_allclose(stored, rows @ rows.T, rtol=1e-5, atol=1e-4)
    free = curvature.gram(jac, curvature.Part(params, {}, examples), max_bytes=max_bytes)
    assert free.dtype == np.float64
    assert np.linalg.norm(free - stored) <= 1e-5 * np.linalg.norm(stored)


def test_gram_of_parts_at_different_weights(net):
    params, (x, v) = net
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    jac = jacobian(params)
    parts = curvature.Part(params, {}, (x[:4], v[:4])), curvature.Part(moved, {}, (x[3:], v[3:]))
    rows = np.concatenate([jac.rows(*part) for part in parts])
    free = curvature.gram(jac, *parts, max_bytes=8 * 4 * 30)
    np.testing.assert_allclose(free, rows @ rows.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(free, free.T)


def test_memory_for_rows_is_a_part_of_the_machine():
    assert 1 << 28 < curvature.memory_for_rows() < 1 << 45


def test_inner_products_of_jax_arrays_are_those_of_numpy():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(curvature.inner_products(jnp.asarray(a), jnp.asarray(b)), a @ b.T, rtol=1e-6)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), columns=st.integers(1, 12))
def test_column_blocks_cover_every_column_once(sizes, columns):
    params = {f"t{i}": np.zeros(size) for i, size in enumerate(sizes)}
    seen = []
    for paths, part in curvature.column_blocks(params, columns):
        names = [(path, i) for path in paths for i in range(params[path].size)][part]
        assert 0 < len(names) <= columns
        seen += names
    assert seen == [(path, i) for path in params for i in range(params[path].size)]


def test_curvature_refuses_what_does_not_fit(net):
    params, (x, v) = net
    jac = jacobian(params)
    with pytest.raises(ValueError, match="must hold at least one column of 7 rows; got 5"):
        curvature.gram(jac, curvature.Part(params, {}, (x, v)), max_bytes=5)
    with pytest.raises(ValueError, match=r"one length; got \{'examples': 7, 'weight': 2\}"):
        jac.transpose_times(params, {}, (x, v), np.ones(2))
    with pytest.raises(ValueError, match="microbatch_size must be at least 1; got -1"):
        jacobian(params, microbatch_size=-1)
    with pytest.raises(ValueError, match="no rows"):
        jac.rows(params, {}, (x[:0], v[:0]))


# The margin programme


def random_programme(seed, n=6, k=4, p=15):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)), rng.normal(size=(k, p)), rng.normal(size=n), rng.normal(size=k) + 0.3


def solve(R, A, r, c, *, damping, ridge=0.0):
    step = solve_margin_qp(R @ R.T, R @ A.T, A @ A.T, r, c, damping=damping, ridge=ridge)
    return step, -(A.T @ step.constraint_weight + R.T @ step.proxy_weight)


def enumerate_active_sets(R, A, r, c, damping):
    """Return the primal solution in P x P systems: the set of active rows whose point is feasible with signs right."""
    H, g = R.T @ R + damping * np.eye(R.shape[1]), R.T @ r
    for size in range(len(c) + 1):
        for active in map(list, itertools.combinations(range(len(c)), size)):
            top = np.hstack([H, A[active].T])
            bottom = np.hstack([A[active], np.zeros((size, size))])
            solution = np.linalg.solve(np.vstack([top, bottom]), np.concatenate([-g, -c[active]]))
            d, multiplier = solution[: len(g)], solution[len(g) :]
            if (A @ d <= -c + 1e-9).all() and (multiplier >= -1e-9).all():
                return d
    raise AssertionError("no active set")


@given(seed=st.integers(0, 10**6), damping=st.floats(1e-2, 10))
@settings(max_examples=60, deadline=None)
def test_dual_equals_a_direct_solver(seed, damping):
    R, A, r, c = random_programme(seed)
    _, d = solve(R, A, r, c, damping=damping)
    direct = enumerate_active_sets(R, A, r, c, damping)
    assert np.linalg.norm(d - direct) <= 1e-6 * np.linalg.norm(direct) + 1e-12


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_multipliers_are_complementary_to_the_slack(seed):
    R, A, r, c = random_programme(seed)
    step, d = solve(R, A, r, c, damping=0.1)
    slack = -c - A @ d
    np.testing.assert_allclose(step.change, A @ d, atol=1e-9)
    assert (step.multiplier >= 0).all()
    assert (slack >= -1e-8).all()  # a met constraint is never pulled back over its boundary
    assert np.abs(step.multiplier * slack).max() <= 1e-6


def test_without_proxies_the_edit_has_minimum_norm():
    _, A, _, c = random_programme(0)
    c = np.abs(c)
    step, d = solve(np.zeros((0, 15)), A, np.zeros(0), c, damping=2.0)
    A, c = A[step.multiplier > 0], c[step.multiplier > 0]
    assert len(c) >= 2
    np.testing.assert_allclose(d, -A.T @ np.linalg.solve(A @ A.T, c), rtol=1e-9)


def test_with_little_damping_the_proxies_change_least():
    R, A, _, c = random_programme(3, n=20, k=3, p=8)  # proxies span the space
    c = np.abs(c)
    step, d = solve(R, A, np.zeros(20), c, damping=1e-7)
    active = step.multiplier > 1e-9
    H = R.T @ R  # least squares with equalities, in closed form
    inverse = np.linalg.inv(H)
    direct = -inverse @ A[active].T @ np.linalg.solve(A[active] @ inverse @ A[active].T, c[active])
    np.testing.assert_allclose(d, direct, rtol=1e-4, atol=1e-6)


def test_met_constraints_and_no_drift_ask_for_nothing():
    R, A, r, _ = random_programme(4)
    step, d = solve(R, A, 0 * r, -np.ones(4), damping=1.0)
    assert not step.multiplier.any()
    assert not d.any()
    _, back = solve(R, A, r, np.full(4, -1e6), damping=1.0)  # only the drift is undone
    np.testing.assert_allclose(back, -R.T @ np.linalg.solve(R @ R.T + np.eye(6), r), atol=1e-12)


def test_contradicting_constraints_are_named():
    R, A, r, _ = random_programme(5)
    A[2] = -A[0]
    c = np.array([1.0, 0.5, 1.0, -1.0])
    with pytest.raises(curvature.InfeasibleError, match=r"constraints \[0, 2\] cannot hold together") as caught:
        solve(R, A, r, c, damping=0.1, ridge=1e-6)
    assert caught.value.rows.tolist() == [0, 2]
    c[2] = -1.5  # the first may fall by 1 while the other rises by no more than 1.5
    solve(R, A, r, c, damping=0.1, ridge=1e-6)


def test_more_constraints_than_weights_cannot_be_separated():
    rng = np.random.default_rng(6)
    A, R = rng.normal(size=(40, 5)), rng.normal(size=(3, 5))
    with pytest.raises(curvature.InfeasibleError):
        solve(R, A, np.zeros(3), np.ones(40), damping=0.1, ridge=1e-6)


def test_repeated_constraints_are_no_contradiction():
    R, A, r, c = random_programme(7)
    _, once = solve(R, A, r, c, damping=0.1)
    twice = np.repeat(A, 2, axis=0).astype(np.float32)
    _, d = solve(R.astype(np.float32), twice, r, np.repeat(c, 2), damping=0.1, ridge=1e-6)
    np.testing.assert_allclose(d, once, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(drift=np.zeros(5)), r"drift must have shape \(6,\); got \(5,\)"),
        (dict(required=np.full(4, np.nan)), "required has NaN"),
        (dict(damping=0.0), "damping must be at least"),
        (dict(ridge=-1.0), "ridge must be at least 0; got -1.0"),
    ],
)
def test_programme_refuses_what_does_not_fit(change, message):
    R, A, r, c = random_programme(8)
    arguments = dict(proxy_gram=R @ R.T, cross_gram=R @ A.T, constraint_gram=A @ A.T, drift=r, required=c, damping=1.0)
    with pytest.raises(ValueError, match=message):
        solve_margin_qp(**(arguments | change))

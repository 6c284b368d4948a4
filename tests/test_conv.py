"""The convolution of our networks against `lax.conv_general_dilated` and its autodiff."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models import _conv

CASES = [  # n, size, channels, features, kernel, stride, padding
    (3, 8, 2, 4, 3, 1, (1, 1)),
    (3, 8, 2, 4, 3, 2, (1, 1)),
    (2, 9, 3, 2, 3, 2, (1, 1)),
    (2, 14, 3, 4, 7, 2, (3, 3)),
    (2, 8, 4, 6, 1, 2, (0, 0)),
    (2, 7, 2, 3, 3, 2, (0, 1)),
    (67, 6, 2, 3, 3, 1, (1, 1)),  # two groups and a rest
    (11, 6, 8, 5, 3, 1, (1, 1)),  # few channels: two groups and a rest
    (3, 7, 8, 3, 3, 1, (0, 3)),
    (4, 7, 9, 3, 5, 1, (2, 1)),
]


def _arrays(n, size, channels, features, kernel, stride, pad):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n, size, size, channels))
    w = jax.random.normal(keys[1], (kernel, kernel, channels, features))
    args = ((stride, stride), (pad, pad))
    y = jax.lax.conv_general_dilated(x, w, *args, dimension_numbers=_conv._CANONICAL)
    return x, w, args, jax.random.normal(keys[2], y.shape)


def _plain(x, w, strides, padding):
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=_conv._CANONICAL)


@pytest.mark.parametrize("case", CASES)
def test_value_and_both_gradients(case):
    x, w, args, dy = _arrays(*case)
    (y, back), (expected, expected_back) = (
        jax.vjp(lambda x, w, f=f: f(x, w, *args), x, w) for f in (_conv.conv_general_dilated, _plain)
    )
    np.testing.assert_array_equal(y, expected)
    for ours, theirs in zip(back(dy), expected_back(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES[:3])
def test_per_example_and_second_order_gradients(case):
    x, w, args, _ = _arrays(*case)

    def loss(w, x, f):
        return jnp.sum(jnp.sin(f(x[None], w, *args)))

    def curvature(w, x, f):
        return jax.grad(lambda w: jnp.sum(jax.grad(loss)(w, x, f) ** 2))(w)

    for of in (jax.grad(loss), curvature):
        ours, theirs = (jax.vmap(lambda x, f=f: of(w, x, f))(x) for f in (_conv.conv_general_dilated, _plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [*itertools.product([(1, 1), (3, 3), (5, 5)], [(1, 1), (2, 2)]), ((3, 5), (1, 2))],
)
def test_weight_gradient_of_each_image_on_its_own(kernel, stride):
    padding = (2, 0), (1, 3)
    keys = jax.random.split(jax.random.key(1), 3)
    x, w = jax.random.normal(keys[0], (3, 7, 9, 2)), jax.random.normal(keys[1], (*kernel, 2, 4))
    dy = jax.random.normal(keys[2], _plain(x, w, stride, padding).shape)

    def loss(w, x, dy, f):
        return jnp.vdot(dy, f(x[None], w, stride, padding)[0])

    ours, theirs = (
        jax.vmap(lambda x, dy, f=f: jax.grad(loss)(w, x, dy, f))(x, dy) for f in (_conv.conv_general_dilated, _plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 5), (2, 1))])
def test_depthwise_value_and_gradients(kernel, stride):
    padding, groups = ((0, 1), (2, 1)), 6
    keys = jax.random.split(jax.random.key(3), 3)
    x, w = jax.random.normal(keys[0], (3, 9, 8, groups)), jax.random.normal(keys[1], (*kernel, 1, groups))

    def ours(w, x):
        return _conv.conv_general_dilated(x, w, stride, padding, feature_group_count=groups)

    def plain(w, x):
        options = dict(feature_group_count=groups, dimension_numbers=_conv._CANONICAL)
        return jax.lax.conv_general_dilated(x, w, stride, padding, **options)

    dy = jax.random.normal(keys[2], plain(w, x).shape)

    @partial(jax.jit, static_argnums=0)
    def outcomes(f):
        y, back = jax.vjp(f, w, x)
        each = jax.vmap(jax.grad(lambda w, x, dy: jnp.vdot(dy, f(w, x[None])[0])), in_axes=(None, 0, 0))(w, x, dy)
        tangent = jax.jvp(f, (w, x), (w + 1, x - 1))[1]
        return y, *back(dy), each, tangent

    for mine, theirs in zip(outcomes(ours), outcomes(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6 * float(jnp.abs(theirs).max()))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(w, x))


def test_other_options_fall_back():
    x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 1, 4))
    options = dict(feature_group_count=2, dimension_numbers=_conv._CANONICAL)
    ours = _conv.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), **options)
    np.testing.assert_array_equal(ours, jax.lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), **options))


@pytest.mark.parametrize("case", [case for case in CASES if case[0] > 8])  # those in groups
def test_the_transpose_of_the_transpose_stands_in_for_forward_mode(case):
    x, w, args, _ = _arrays(*case)
    tangent = jnp.ones_like(w)
    y, back = jax.vjp(lambda w: _conv.conv_general_dilated(x, w, *args), w)
    (forward,) = jax.linear_transpose(lambda dy: back(dy)[0], y)(tangent)
    np.testing.assert_allclose(forward, _plain(x, tangent, *args), rtol=1e-4, atol=1e-4)

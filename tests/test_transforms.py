"""The masked penalty and the masks, against autodiff and PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn.transforms import freeze, freeze_paths, masked_regularization

KEY = jax.random.key(5)


def tree(seed):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "body": {"kernel": jax.random.normal(a, (4, 3)), "bias": jax.random.normal(b, (3,))},
        "head": {"kernel": jax.random.normal(c, (3, 2))},
    }


def holding(seed):
    return jax.tree.map(jax.nn.sigmoid, tree(seed))


def assert_trees_close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


# --- the masked penalty -------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), strength=st.floats(0, 100, width=32))
@settings(max_examples=15, deadline=None)
def test_it_adds_the_gradient_of_the_penalty(seed, strength):
    params, anchor, w, grads = tree(seed), tree(seed + 1), holding(seed + 2), tree(seed + 3)

    def penalty(params):
        terms = jax.tree.map(lambda p, a, w: jnp.sum(w * (p - a) ** 2), params, anchor, w)
        return strength / 2 * sum(jax.tree.leaves(terms))

    tx = masked_regularization(w, anchor, strength)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected = jax.tree.map(jnp.add, grads, jax.grad(penalty)(params))
    assert_trees_close(updates, expected, rtol=1e-5, atol=1e-5)


def test_at_the_anchor_it_adds_exactly_nothing():
    params, grads = tree(0), tree(1)
    tx = masked_regularization(holding(2), params, 1e6)
    updates, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, grads)


def test_zero_is_free_and_one_is_held():
    params = {"w": jnp.array([0.0, 0.0])}
    tx = optax.chain(masked_regularization({"w": jnp.array([0.0, 1.0])}, params, 1e4), optax.sgd(1e-4))
    state = tx.init(params)
    for _ in range(50):
        updates, state = tx.update({"w": jnp.array([-1.0, -1.0])}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], [50e-4, 1e-4], rtol=1e-4)  # free: 50 steps; held: g / strength


def test_before_momentum_it_equals_the_penalty_in_the_loss_in_pytorch():
    import torch

    params, anchor, w = tree(0), tree(0), holding(1)
    lr, strength, decay = 0.05, 0.7, 1e-2
    x = jax.random.normal(KEY, (8, 4))

    def loss(params):
        hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"][None])
        return jnp.mean(jnp.sum((hidden @ params["head"]["kernel"] - 1.0) ** 2, -1))

    tx = optax.chain(
        masked_regularization(w, anchor, strength),
        optax.add_decayed_weights(decay),
        optax.trace(0.9),
        optax.scale_by_learning_rate(lr),
    )

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(12):
        params, state = step(params, state)

    theta = [torch.tensor(np.array(leaf), requires_grad=True) for leaf in jax.tree.leaves(anchor)]
    theta0 = [t.detach().clone() for t in theta]
    weights = [torch.tensor(np.array(leaf)) for leaf in jax.tree.leaves(w)]
    bias, kernel, head = theta  # sorted by path
    inputs = torch.tensor(np.array(x))
    sgd = torch.optim.SGD(theta, lr=lr, momentum=0.9, weight_decay=decay)
    for _ in range(12):
        out = torch.tanh(inputs @ kernel + bias) @ head
        total = ((out - 1.0) ** 2).sum(-1).mean()
        total = total + strength / 2 * sum(
            (v * (t - t0) ** 2).sum() for v, t, t0 in zip(weights, theta, theta0, strict=True)
        )
        sgd.zero_grad()
        total.backward()
        sgd.step()
    assert_trees_close(jax.tree.leaves(params), [t.detach().numpy() for t in theta], rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda p, a: jnp.abs(p - a).max(), params, anchor)
    assert min(jax.tree.leaves(moved)) > 0.01


def test_strengths_weights_and_anchors_may_differ_by_lane_in_one_compilation():
    strengths = jnp.array([0.0, 0.5, 20.0])
    anchors, weights = (jax.vmap(lambda i: make(0, i))(jnp.arange(3.0)) for make in (shifted, shifted_weight))
    params, grads = tree(7), tree(8)
    traces = []

    def two_steps(strength, w, anchor):
        traces.append(strength)
        tx = masked_regularization(w, anchor, strength)
        state, p = tx.init(params), params
        for _ in range(2):
            updates, state = tx.update(grads, state, p)
            p = optax.apply_updates(p, jax.tree.map(lambda u: -0.01 * u, updates))
        return p

    lanes = jax.jit(jax.vmap(two_steps))
    together = lanes(strengths, weights, anchors)
    lanes(2 * strengths, weights, anchors)
    assert len(traces) == 1
    for i in range(3):
        alone = two_steps(strengths[i], *(jax.tree.map(lambda a: a[i], t) for t in (weights, anchors)))
        assert_trees_close(jax.tree.map(lambda a: a[i], together), alone, rtol=1e-5, atol=1e-6)


def shifted(seed, by):
    return jax.tree.map(lambda a: a + by, tree(seed))


def shifted_weight(seed, by):
    return jax.tree.map(lambda a: jax.nn.sigmoid(a + by), tree(seed))


def test_the_state_owns_its_values():
    params, anchor, w = tree(0), tree(1), holding(2)
    state = masked_regularization(w, anchor, 0.5).init(params)
    expected, _ = masked_regularization(w, anchor, 0.5).update(tree(3), state, params)
    for leaf in jax.tree.leaves((anchor, w)):
        leaf.delete()  # what donation does
    other = masked_regularization(tree(8), tree(9), 3.0)  # update reads the state alone
    assert_trees_close(other.update(tree(3), state, params)[0], expected, rtol=0)


def test_updates_keep_their_dtype():
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree(0))
    tx = masked_regularization(holding(1), params, jnp.float32(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_errors_of_the_penalty():
    params = tree(0)
    for strength, got in ((-1.0, "-1.0"), (float("nan"), "nan"), (jnp.inf, "inf")):
        with pytest.raises(ValueError, match=f"strength must be at least 0; got {got}"):
            masked_regularization(holding(1), params, strength)
    tx = masked_regularization(holding(1), params, 1.0)
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state, params\)"):
        tx.update(params, tx.init(params))
    with pytest.raises(
        ValueError, match="holding_weight must be a tree like the parameters; at 'head/kernel' it has n"
    ):
        masked_regularization({"body": params["body"]}, params, 1.0).init(params)
    with pytest.raises(
        ValueError, match=r"anchor must be a tree like the parameters; at 'extra' it has shape .*, they no"
    ):
        masked_regularization(params, params | {"extra": jnp.zeros(1)}, 1.0).init(params)
    wrong = params | {"head": {"kernel": jnp.zeros((3, 1))}}
    with pytest.raises(ValueError, match=r"at 'head/kernel' it has shape \(3, 1\), they shape \(3, 2\)"):
        masked_regularization(wrong, params, 1.0).init(params)
    with pytest.raises(ValueError, match="holding_weight must be a tree like the parameters; at"):
        masked_regularization(None, params, 1.0).init(params)


# --- hard masks ---------------------------------------------------------------------------------

BASE = {
    "sgd": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale_by_learning_rate(0.1)),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("base", BASE)
@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32])
def test_held_entries_keep_their_bits_after_momentum_and_decay(base, dtype):
    params = tree(0)
    mask = jax.tree.map(lambda p: np.asarray(p > 0).astype(dtype), params)
    tx, alone = optax.chain(BASE[base](), freeze(mask)), BASE[base]()
    state, state_alone, p, q = tx.init(params), alone.init(params), params, params
    for i in range(5):
        grads = tree(10 + i)
        grads["head"]["kernel"] = jnp.where(mask["head"]["kernel"] != 0, jnp.nan, grads["head"]["kernel"])
        updates, state = jax.jit(tx.update)(grads, state, p)
        free, state_alone = alone.update(grads, state_alone, p)
        p = optax.apply_updates(p, updates)
        q = jax.tree.map(lambda x, u, m: jnp.where(m != 0, x, x + u), q, free, mask)
        for u, m in zip(jax.tree.leaves(updates), jax.tree.leaves(mask), strict=True):
            assert not np.asarray(u)[m != 0].any()
    for x, x0, m in zip(*map(jax.tree.leaves, (p, params, mask)), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[m != 0], np.asarray(x0)[m != 0])
        assert (np.asarray(x)[m == 0] != np.asarray(x0)[m == 0]).all()
    assert_trees_close(p, q, rtol=1e-6)


def test_masks_may_differ_by_lane():
    masks = {"w": jnp.array([[0.0, 1.0], [1.0, 0.0]])}
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}

    def one(mask):
        tx = freeze(mask)
        return tx.update(grads, tx.init(params))[0]

    assert jax.vmap(one)(masks)["w"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_errors_of_a_mask():
    params = tree(0)
    ones = jax.tree.map(jnp.ones_like, params)
    with pytest.raises(
        ValueError, match=r"mask must hold only 0 \(free\) and 1 \(held\); head/kernel has other values"
    ):
        freeze(ones | {"head": {"kernel": jnp.full((3, 2), 0.5)}}).init(params)
    with pytest.raises(ValueError, match="mask must be a tree like the parameters; at 'body/bias' it has nothing"):
        freeze({"head": ones["head"]}).init(params)


@pytest.mark.parametrize("base", BASE)
@pytest.mark.parametrize(
    ("patterns", "held"),
    [
        (("head/*",), {"head/kernel"}),
        (("*/kernel",), {"body/kernel", "head/kernel"}),
        (("body/bias", "head/[k]ernel"), {"body/bias", "head/kernel"}),
        (("*",), {"body/kernel", "body/bias", "head/kernel"}),
    ],
)
def test_paths_are_frozen_by_pattern(base, patterns, held):
    params = tree(0)
    tx = optax.chain(BASE[base](), freeze_paths(*patterns))
    state, p = tx.init(params), params
    for i in range(3):
        updates, state = jax.jit(tx.update)(tree(10 + i), state, p)
        p = optax.apply_updates(p, updates)
    same = {
        f"{outer}/{name}": bool((p[outer][name] == params[outer][name]).all())
        for outer in params
        for name in params[outer]
    }
    assert {path for path, equal in same.items() if equal} == held


def test_errors_of_paths():
    with pytest.raises(ValueError, match="freeze_paths needs at least one pattern"):
        freeze_paths()
    with pytest.raises(
        ValueError, match="no parameter matches 'Head/\\*'; there are body/bias, body/kernel, head/kernel"
    ):
        freeze_paths("*/bias", "Head/*").init(tree(0))

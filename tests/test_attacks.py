"""PGD, FGSM, targets and adversarial sets: invariants, closed forms, parity with PyTorch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn import Batch, Model, ModelSpec, _progress, attacks
from tests.tiny import Counting, convolutional, convolutional_variables, linear, linear_params, torch_convolutional

KEY = jax.random.key(7)
LINEAR = linear_params(jax.random.key(1), 6, 3)
NORMS = ("l2", "linf")
ATTACKS = {norm: attacks.pgd(linear, norm=norm, steps=3) for norm in NORMS}


def length(norm, d):
    return np.max(np.abs(d)) if norm == "linf" else np.sqrt(np.sum(np.square(d, dtype=np.float64)))


def conv_case(n=10, seed=0):
    params, state = convolutional_variables(jax.random.key(seed))
    x = jax.random.uniform(jax.random.key(seed + 1), (n, 6, 6, 2))
    label = jax.random.randint(jax.random.key(seed + 2), (n,), 0, 4)
    return params, state, x, label, jax.random.split(jax.random.key(seed + 3), n)


# --- properties ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@given(
    unit=st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=6, max_size=6),
    low=st.floats(-2, 0.5, width=32, allow_subnormal=False),
    side=st.floats(0.125, 4, width=32, allow_subnormal=False),
    epsilon=st.floats(0, 8, width=32, allow_subnormal=False),
    step_size=st.floats(0, 4, width=32, allow_subnormal=False),
    seed=st.integers(0, 2**31),
    label=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_the_example_is_inside_ball_and_box_and_the_key_decides(norm, unit, low, side, epsilon, step_size, seed, label):
    high = low + side
    x = jnp.clip(low + side * jnp.array(unit, jnp.float32), low, high)
    run = lambda: ATTACKS[norm](
        jax.random.key(seed), LINEAR, {}, x, label, epsilon=epsilon, step_size=step_size, box=(low, high)
    )
    x_adv = np.asarray(run())
    assert length(norm, x_adv - np.asarray(x)) <= epsilon + 1e-5
    assert x_adv.min() >= np.float32(low)
    assert x_adv.max() <= np.float32(high)
    np.testing.assert_array_equal(x_adv, run())


@pytest.mark.parametrize("norm", NORMS)
@given(
    unit=st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=6, max_size=6), seed=st.integers(0, 2**31)
)
@settings(max_examples=20, deadline=None)
def test_a_ball_of_radius_zero_gives_the_input_itself(norm, unit, seed):
    x = jnp.array(unit, jnp.float32)
    x_adv = ATTACKS[norm](jax.random.key(seed), LINEAR, {}, x, 0, epsilon=0.0, step_size=0.5)
    np.testing.assert_array_equal(x_adv, x)


@pytest.mark.parametrize("norm", NORMS)
@given(n=st.integers(1, 9), microbatch_size=st.integers(1, 10), loop=st.sampled_from(["host", "device"]))
@settings(max_examples=5, deadline=None)
def test_company_does_not_change_an_example(norm, n, microbatch_size, loop):
    x = jax.random.uniform(KEY, (9, 6))[:n]
    keys, label = jax.random.split(KEY, 9)[:n], jnp.arange(n) % 3
    many = attacks.attack_batch(
        ATTACKS[norm],
        keys,
        LINEAR,
        {},
        x,
        label,
        epsilon=0.7,
        step_size=0.2,
        microbatch_size=microbatch_size,
        loop=loop,
    )
    for row in range(n):
        one = ATTACKS[norm](keys[row], LINEAR, {}, x[row], label[row], epsilon=0.7, step_size=0.2)
        np.testing.assert_allclose(many[row], one, atol=1e-6)


def test_another_key_starts_elsewhere():
    x = jnp.full(6, 0.5)
    starts = [attacks.pgd(linear).start(jax.random.key(i), x, limits(x, 0.4)) for i in range(2)]
    assert not np.allclose(*starts)


def limits(x, epsilon, step_size=0.1, box=(0.0, 1.0)):
    return attacks.pgd(linear).limits(x, epsilon=epsilon, step_size=step_size, box=box)


# --- closed forms -------------------------------------------------------------------------------


def test_the_l2_start_is_a_point_of_the_box_drawn_back_into_the_ball():
    x = jnp.linspace(0.1, 0.9, 500)
    u = jax.random.uniform(KEY, x.shape)  # the draw the key stands for
    d = np.asarray(u - x)
    start = attacks.pgd(linear).start(KEY, x, limits(x, 0.5))
    np.testing.assert_allclose(start, d * 0.5 / np.linalg.norm(d), atol=1e-6)
    wide = attacks.pgd(linear).start(KEY, x, limits(x, 100.0))
    np.testing.assert_allclose(x + wide, u, atol=1e-6)
    shifted = attacks.pgd(linear).start(KEY, 4 * x - 1, limits(x, 1e3, box=(-1.0, 3.0)))
    np.testing.assert_allclose(4 * x - 1 + shifted, 4 * u - 1, atol=1e-5)


def test_the_linf_start_is_uniform_in_the_ball():
    x = jnp.full(4000, 0.5)
    d = np.asarray(attacks.pgd(linear, norm="linf").start(KEY, x, limits(x, 0.25)))
    assert scipy.stats.kstest(d, "uniform", (-0.25, 0.5)).pvalue > 1e-3
    clipped = attacks.pgd(linear, norm="linf").start(KEY, x, limits(x, 2.0))
    assert float(jnp.max(jnp.abs(clipped))) == 0.5  # the box binds


@pytest.mark.parametrize("targeted", [True, False])
def test_one_l2_step_from_the_input_goes_along_the_gradient(targeted):
    x, label, alpha = jnp.full(6, 0.5), 2, 0.05
    attack = attacks.pgd(linear, steps=1, targeted=targeted, random_start=False)
    x_adv = attack(KEY, LINEAR, {}, x, label, epsilon=10.0, step_size=alpha)
    w, b = (np.asarray(LINEAR[name], np.float64) for name in "wb")
    z = np.asarray(x, np.float64) @ w + b
    softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    g = w @ (np.eye(3)[label] - softmax) * (1 if targeted else -1)
    np.testing.assert_allclose(x_adv - x, alpha * g / np.linalg.norm(g), atol=1e-6)


def test_between_two_classes_the_path_is_straight_and_ends_on_the_ball():
    params = linear_params(KEY, 6, 2)
    x = jnp.full(6, 0.5)
    attack = attacks.pgd(linear, steps=20, random_start=False)
    d = np.asarray(attack(KEY, params, {}, x, 1, epsilon=0.3, step_size=0.05) - x)
    toward = np.asarray(params["w"][:, 1] - params["w"][:, 0])
    np.testing.assert_allclose(d, 0.3 * toward / np.linalg.norm(toward), atol=1e-5)


def test_l2_goes_into_the_box_first_and_linf_into_the_ball_first():
    # One feature far above the rest: the box cuts it, and the radius is measured on what is left.
    params = {"w": jnp.array([[0.0, 3.0], [0.0, 4.0]]), "b": jnp.zeros(2)}
    x = jnp.array([0.5, 0.95])
    attack = attacks.pgd(linear, steps=1, random_start=False)
    d = attack(KEY, params, {}, x, 1, epsilon=0.2, step_size=1.0) - x  # step (.6, .8), box (.5, .05)
    boxed = np.array([0.5, 0.05])
    np.testing.assert_allclose(d, boxed * 0.2 / np.linalg.norm(boxed), atol=1e-6)
    d = (
        attacks.pgd(linear, norm="linf", steps=1, random_start=False)(KEY, params, {}, x, 1, epsilon=0.2, step_size=1.0)
        - x
    )
    np.testing.assert_allclose(d, [0.2, 0.05], atol=1e-6)


@pytest.mark.parametrize("targeted", [True, False])
def test_fgsm_is_one_step_of_length_epsilon(targeted):
    x = jnp.full(6, 0.5)
    w, z = np.asarray(LINEAR["w"]), np.asarray(linear(LINEAR, {}, x[None])[0][0])
    g = w @ (np.exp(z) / np.exp(z).sum() - np.eye(3)[1]) * (-1 if targeted else 1)
    x_adv = attacks.fgsm(linear, targeted=targeted)(KEY, LINEAR, {}, x, 1, epsilon=0.1)
    np.testing.assert_allclose(x_adv, 0.5 + 0.1 * np.sign(g), atol=1e-6)
    x_adv = attacks.fgsm(linear, norm="l2", targeted=targeted)(KEY, LINEAR, {}, x, 1, epsilon=0.1)
    np.testing.assert_allclose(x_adv, 0.5 + 0.1 * g / np.linalg.norm(g), atol=1e-6)


def test_a_flat_loss_moves_nothing():
    flat = jax.tree.map(jnp.zeros_like, LINEAR)
    for norm in NORMS:
        attack = attacks.pgd(linear, norm=norm, steps=2, random_start=False)
        x = jnp.full(6, 0.25)
        np.testing.assert_array_equal(attack(KEY, flat, {}, x, 1, epsilon=1.0, step_size=0.5), x)


def test_the_network_runs_in_eval_mode():
    def strict(params, state, x, *, train=False, rngs=None):
        assert train is False
        assert rngs is None
        return linear(params, state, x)

    attacks.pgd(strict, steps=1)(KEY, LINEAR, {}, jnp.full(6, 0.5), 1, epsilon=0.1, step_size=0.1)


# --- parity with PyTorch ------------------------------------------------------------------------


def torch_pgd(forward, x, d, label, *, norm, targeted, epsilon, alpha, steps, low=0.0, high=1.0):
    """PGD in plain PyTorch on a batch, from the perturbation d."""
    import torch

    def radius(t):
        return t.flatten(1).norm(dim=1)[:, None, None, None]

    for _ in range(steps):
        d = d.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(forward(x + d), label, reduction="sum")
        (g,) = torch.autograd.grad(-loss if targeted else loss, d)
        with torch.no_grad():
            if norm == "l2":
                d = (x + d + alpha * g / radius(g).clamp(min=1e-6)).clamp(low, high) - x
                d = d * (epsilon / radius(d)).clamp(max=1.0)
            else:
                d = (x + (d + alpha * g.sign()).clamp(-epsilon, epsilon)).clamp(low, high) - x
    return (x + d).clamp(low, high).detach().numpy()


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize(("norm", "epsilon", "alpha"), [("l2", 0.8, 0.1), ("l2", 6.0, 0.7), ("linf", 0.06, 0.01)])
def test_ten_steps_agree_with_pytorch(norm, epsilon, alpha, targeted):
    import torch

    params, state, x, label, keys = conv_case(n=6)
    attack = attacks.pgd(convolutional, norm=norm, steps=10, targeted=targeted)
    numbers = attack.limits(x, epsilon=epsilon, step_size=alpha)
    start = jax.vmap(attack.start, in_axes=(0, 0, None))(keys, x, numbers)
    ours = attacks.attack_batch(attack, keys, params, state, x, label, epsilon=epsilon, step_size=alpha)
    forward, _ = torch_convolutional(params, state)
    tensors = (torch.tensor(np.array(a)) for a in (x, start, np.asarray(label, np.int64)))
    theirs = torch_pgd(forward, *tensors, norm=norm, targeted=targeted, epsilon=epsilon, alpha=alpha, steps=10)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- one compilation, many at once --------------------------------------------------------------


@pytest.mark.parametrize("loop", ["host", "device"])
def test_one_compilation_serves_every_radius_step_box_and_key(loop):
    network = Counting(linear)
    attack = attacks.pgd(network, steps=3, loop=loop)
    x = jax.random.uniform(KEY, (5, 6))
    for i, (epsilon, step_size, box) in enumerate([(0.1, 0.1, (0, 1)), (2, 0.3, (-1.0, 2.0)), (jnp.pi, 1, (0.0, 5))]):
        attack(jax.random.key(i), LINEAR, {}, x[i], i, epsilon=epsilon, step_size=step_size, box=box)
    assert network.traces == 1
    for i, epsilon in enumerate([0.1, 2.0]):
        keys = jax.random.split(jax.random.key(i), 5)
        attacks.attack_batch(attack, keys, LINEAR, {}, x, jnp.zeros(5, int), epsilon=epsilon, step_size=0.1)
    assert network.traces == 2
    equal = attacks.pgd(network, steps=3, loop=loop)
    assert equal == attack
    assert hash(equal) == hash(attack)
    equal(KEY, LINEAR, {}, x[0], 1, epsilon=0.2, step_size=0.1)
    assert network.traces == 2


def test_vmap_over_radii_keys_and_models_equals_one_by_one():
    network = Counting(linear)
    attack = attacks.pgd(network, steps=4)
    x, models = jax.random.uniform(KEY, (3, 6)), jax.vmap(lambda k: linear_params(k, 6, 3))(jax.random.split(KEY, 3))
    epsilons, keys = jnp.array([0.0, 0.3, 2.0]), jax.random.split(jax.random.key(9), 3)
    labels = jnp.arange(3)

    def one(epsilon, key, params, x, label):
        return attack(key, params, {}, x, label, epsilon=epsilon, step_size=0.1)

    over_radii = jax.vmap(one, in_axes=(0, None, None, None, None))(
        epsilons, keys[0], jax.tree.map(lambda a: a[0], models), x[0], labels[0]
    )
    assert network.traces == 1
    together = jax.vmap(one)(epsilons, keys, models, x, labels)
    for i in range(3):
        single = lambda k: (epsilons[i], keys[k], jax.tree.map(lambda a: a[k], models), x[k], labels[k])
        np.testing.assert_allclose(over_radii[i], one(*single(0)), atol=1e-6)
        np.testing.assert_allclose(together[i], one(*single(i)), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_host_and_device_loops_agree_on_convolutions(norm):
    params, state, x, label, keys = conv_case()
    attack = attacks.pgd(convolutional, norm=norm, steps=4)
    run = lambda **kwargs: attacks.attack_batch(
        attack, keys, params, state, x, label, epsilon=0.5, step_size=0.05, microbatch_size=8, **kwargs
    )
    host = run(loop="host")
    np.testing.assert_allclose(host, run(loop="device"), atol=1e-5)
    np.testing.assert_allclose(host, jax.jit(run)(), atol=1e-5)
    vmapped = jax.vmap(lambda k, x, t: attack(k, params, state, x, t, epsilon=0.5, step_size=0.05))(keys, x, label)
    np.testing.assert_allclose(host, vmapped, atol=1e-5)


@pytest.mark.parametrize("loop", ["host", "device"])
def test_eight_devices_agree_with_one(loop):
    params, state, x, label, keys = conv_case(n=16)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    attack = attacks.pgd(convolutional, steps=4, loop=loop)
    run = lambda keys, x, label: attacks.attack_batch(
        attack, keys, params, state, x, label, epsilon=0.5, step_size=0.1, microbatch_size=8
    )
    sharded = run(*jax.device_put((keys, x, label), NamedSharding(mesh, P("batch"))))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, run(keys, x, label), atol=1e-5)


def test_half_precision_stays_half_precision():
    x = jnp.full(6, 0.5, jnp.bfloat16)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), LINEAR)
    numbers = dict(epsilon=jnp.float32(0.5), step_size=jnp.float32(0.1))  # a sweep holds these in float32
    assert ATTACKS["l2"](KEY, params, {}, x, 1, **numbers).dtype == jnp.bfloat16


# --- target labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [0, 3, 6])
def test_targets_are_uniform_over_the_other_classes(y):
    keys = jax.random.split(KEY, 6000)
    drawn = np.asarray(jax.vmap(lambda k: attacks.random_targets(k, jnp.int32(y), 7))(keys))
    counts = np.bincount(drawn, minlength=7)
    assert counts[y] == 0
    assert scipy.stats.chisquare(np.delete(counts, y)).pvalue > 1e-3


def test_published_targets_prefer_the_middle_class():
    drawn = lambda y: np.bincount(attacks.random_targets(KEY, jnp.full(20000, y), 10, scheme="published"), minlength=10)
    for y in (1, 5):  # an instance of another class; one of class C // 2
        expected = np.full(10, 2000.0)
        expected[5], expected[y] = expected[5] + expected[y], 0 if y != 5 else expected[5]
        if y == 5:
            expected[5] = 2000.0  # its own label, in 1/C of the draws
        counts = drawn(y)
        assert counts[expected == 0].sum() == 0
        assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_targets_with_two_classes_and_their_errors():
    assert attacks.random_targets(KEY, jnp.array([0, 1, 0]), 2).tolist() == [1, 0, 1]
    assert attacks.random_targets(KEY, jnp.array([0, 1, 0]), 2).dtype == jnp.int32
    with pytest.raises(ValueError, match="scheme must be one of 'uniform', 'published'; got 'nearest'"):
        attacks.random_targets(KEY, jnp.array(0), 3, scheme="nearest")
    with pytest.raises(ValueError, match="num_classes must be at least 2, there is no other class; got 1"):
        attacks.random_targets(KEY, jnp.array(0), 1)
    with pytest.raises(ValueError, match="y must be labels from 0 to 2; got 3 in row 1"):
        attacks.random_targets(KEY, jnp.array([0, 3]), 3)


# --- adversarial sets ---------------------------------------------------------------------------


def conv_model(seed=0):
    params, state = convolutional_variables(jax.random.key(seed))
    spec = ModelSpec(num_classes=4, input_shape=(6, 6, 2))
    return Model(params=params, model_state=state, apply_fn=convolutional, spec=spec)


def forget_set(n=5):
    x = jax.random.uniform(jax.random.key(11), (n, 6, 6, 2))
    return Batch.of(x, np.arange(n) % 4)


SETTINGS = dict(draws=3, epsilon=0.5, step_size=0.1, steps=4, group=2, microbatch_size=8)


def test_the_published_order_is_groups_then_draws_then_instances():
    row, draw = attacks.published_order(5, 2, 2)
    assert row.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 4]
    assert draw.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    made = attacks.adversarial_set(KEY, conv_model(), forget_set(), **SETTINGS)
    row, _ = attacks.published_order(5, 3, 2)
    assert made.index.tolist() == row.tolist()
    assert made.y.tolist() == (row % 4).tolist()
    assert made.weight.tolist() == [1.0] * 15
    assert not np.any(np.asarray(made.target) == np.asarray(made.y))
    distances = np.linalg.norm((made.x - forget_set().x[row]).reshape(15, -1), axis=1)
    assert (distances <= 0.5 + 1e-5).all()
    assert (distances > 0.1).all()


def test_an_image_depends_on_its_instance_and_draw_alone():
    model, forget = conv_model(), forget_set()
    made = attacks.adversarial_set(KEY, model, forget, **SETTINGS)
    row, draw = attacks.published_order(5, 3, 2)
    for i in (0, 14):
        for_target, for_start = jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, row[i]), draw[i]))
        target = attacks.random_targets(for_target, forget.y[row[i]], 4)
        assert int(made.target[i]) == int(target)
        alone = attacks.pgd(convolutional, steps=4)(
            for_start, model.params, model.model_state, forget.x[row[i]], target, epsilon=0.5, step_size=0.1
        )
        np.testing.assert_allclose(made.x[i], alone, atol=1e-5)
    other = jax.tree.map(lambda a: a[np.array([4, 1])], forget)  # another company, fewer draws, other batches
    fewer = attacks.adversarial_set(KEY, model, other, **SETTINGS | {"draws": 2, "group": 1})
    assert fewer.index.tolist() == [4, 4, 1, 1]
    same = [int(np.flatnonzero((row == r) & (draw == d))[0]) for r, d in [(4, 0), (4, 1), (1, 0), (1, 1)]]
    np.testing.assert_allclose(fewer.x, made.x[np.array(same)], atol=1e-5)
    assert fewer.target.tolist() == made.target[np.array(same)].tolist()


def test_padding_rows_give_images_of_weight_zero_and_change_no_other():
    model, forget = conv_model(), forget_set(3)
    junk = forget._replace(x=forget.x + 7, y=forget.y - 1, weight=jnp.zeros(3))  # outside the box, no label
    padded = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), forget, junk)
    made = attacks.adversarial_set(KEY, model, padded, **SETTINGS | {"group": 6})
    real = np.asarray(made.weight) == 1
    assert real.sum() == 9
    assert bool(jnp.isfinite(made.x).all())
    alone = attacks.adversarial_set(KEY, model, forget, **SETTINGS | {"group": 6})
    for name in ("y", "target", "index"):
        assert getattr(made, name)[real].tolist() == getattr(alone, name).tolist()
    np.testing.assert_allclose(made.x[real], alone.x, atol=1e-5)


def test_a_set_under_jit_and_vmap_equals_the_set_from_the_host():
    models = [conv_model(seed) for seed in (0, 1)]
    forget, keys, epsilons = forget_set(3), jax.random.split(KEY, 2), jnp.array([0.2, 0.6])
    make = lambda key, model, epsilon: attacks.adversarial_set(key, model, forget, **SETTINGS | {"epsilon": epsilon})
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = jax.jit(jax.vmap(make))(keys, stacked, epsilons)
    for i in range(2):
        single = make(keys[i], models[i], float(epsilons[i]))
        np.testing.assert_allclose(together.x[i], single.x, atol=1e-5)
        assert together.target[i].tolist() == single.target.tolist()


def test_a_set_keeps_to_the_box_of_its_model():
    model = conv_model()
    model = model.replace(spec=dataclasses.replace(model.spec, box=(-1.0, 3.0)))
    forget = forget_set()._replace(x=4 * forget_set().x - 1)
    made = attacks.adversarial_set(KEY, model, forget, **SETTINGS | {"epsilon": 50.0})
    assert float(made.x.min()) >= -1
    assert float(made.x.max()) <= 3
    assert float(made.x.max()) > 2
    with pytest.raises(ValueError, match=r"forget.x must lie in \[0, 1\]"):
        attacks.adversarial_set(KEY, conv_model(), forget, **SETTINGS)


def test_making_a_set_tells_how_far_it_is():
    seen = []
    with _progress.listening(lambda *told: seen.append(told)):
        attacks.adversarial_set(KEY, conv_model(), forget_set(), **SETTINGS, loop="host")
    assert {(label, total) for label, _, total in seen} == {("adversarial images", 8)}
    done = [step for _, step, _ in seen]  # as many chunks side by side as there are cores
    assert done == sorted(set(done))
    assert done[-1] == 8
    assert len(done) >= 4
    seen.clear()
    with _progress.listening(lambda *told: seen.append(told)):
        attacks.adversarial_set(KEY, conv_model(), forget_set(), **SETTINGS, loop="device")
    assert seen == [("adversarial images", 4, 8), ("adversarial images", 8, 8)]


# --- errors -------------------------------------------------------------------------------------


def call(**changes):
    arguments = dict(x=jnp.full(6, 0.5), label=1, epsilon=0.1, step_size=0.1, box=(0.0, 1.0)) | changes
    x, label = arguments.pop("x"), arguments.pop("label")
    return attacks.pgd(linear, steps=2)(KEY, LINEAR, {}, x, label, **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(label=jnp.array([1])), ValueError, r"label must be a scalar, .* got shape \(1,\): vmap it"),
        (dict(x=jnp.arange(6)), TypeError, "x must be floating point; got int32"),
        (dict(epsilon=-0.1), ValueError, "epsilon must be at least 0; got -0.1"),
        (dict(epsilon=jnp.nan), ValueError, "epsilon must be at least 0; got nan"),
        (dict(step_size=-1), ValueError, "step_size must be at least 0; got -1"),
        (dict(step_size=None), ValueError, "step_size may be left out only for one step; this attack takes 2"),
        (dict(epsilon=jnp.ones(2)), ValueError, r"epsilon must be a scalar; got shape \(2,\): vmap the attack"),
        (dict(box=(1.0, 0.0)), ValueError, r"box must be finite \(low, high\) with low < high; got \(1.0, 0.0\)"),
        (dict(box=(0.0, jnp.inf)), ValueError, "box must be finite"),
    ],
)
def test_errors_of_a_call(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(norm="l1"), "norm must be one of 'l2', 'linf'; got 'l1'"),
        (dict(steps=0), "steps must be at least 1; got 0"),
        (dict(loop="gpu"), "loop must be one of 'auto', 'host', 'device'; got 'gpu'"),
    ],
)
def test_errors_of_the_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(linear, **settings)


def test_errors_of_a_batch():
    attack, x, keys = ATTACKS["l2"], jnp.full((3, 6), 0.5), jax.random.split(KEY, 3)
    run = lambda keys, x, label, **kw: attacks.attack_batch(
        attack, keys, LINEAR, {}, x, label, epsilon=0.1, step_size=0.1, **kw
    )
    with pytest.raises(
        ValueError, match=r"the attack must have fields of one length; got \{'keys': 3, 'x': 3, 'label':"
    ):
        run(keys, x, jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"label must have shape \(n,\), one an instance; got \(\)"):
        run(keys, x, 1)
    with pytest.raises(ValueError, match=r"keys must have shape \(n,\), one an instance; got \(\)"):
        run(KEY, x, jnp.zeros(3, int))
    with pytest.raises(ValueError, match="no rows"):
        run(keys[:0], x[:0], jnp.zeros(0, int))
    with pytest.raises(ValueError, match="microbatch_size must be at least 1"):
        run(keys, x, jnp.zeros(3, int), microbatch_size=0)
    with pytest.raises(ValueError, match="loop='host' cannot run under jit, vmap or grad"):
        jax.jit(lambda x: run(keys, x, jnp.zeros(3, int), loop="host"))(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(draws=0), "draws must be at least 1; got 0"),
        (dict(group=0), "group must be at least 1; got 0"),
        (dict(targets="nearest"), "targets must be one of 'uniform', 'published'; got 'nearest'"),
        (dict(epsilon=-1.0), "epsilon must be at least 0; got -1.0"),
    ],
)
def test_errors_of_a_set(changes, message):
    with pytest.raises(ValueError, match=message):
        attacks.adversarial_set(KEY, conv_model(), forget_set(), **SETTINGS | changes)


def test_a_set_needs_an_instance():
    nothing = forget_set()._replace(weight=jnp.zeros(5))
    with pytest.raises(ValueError, match="the forget set is empty"):
        attacks.adversarial_set(KEY, conv_model(), nothing, **SETTINGS)

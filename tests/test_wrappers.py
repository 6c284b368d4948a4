"""Networks that a method changed go through the same seam, recipe and checkpoint as any other."""

from __future__ import annotations

import dataclasses
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, checkpoint, convert, inference, models, wrappers
from jaxunlearn._types import Model, ModelSpec, Recipe
from jaxunlearn.adapters import from_linen
from jaxunlearn.cli.main import main
from tests import tiny
from tests.digits_net import network, tensors


@pytest.fixture(scope="module")
def digits():
    from jaxunlearn.data import open_source

    source = open_source("digits")
    return source, source.images(source.splits["train"]), source.labels[source.splits["train"]]


def around(model: Model, x, *, half: float, gain: float, gamma: float = 100.0, space: str = "input") -> Model:
    """Put a patch around boxes of ``half`` about some inputs that adds ``gain`` to the logit of class 0."""
    z = np.asarray(x).reshape(len(x), -1) if space == "input" else np.asarray(wrappers.features(model, jnp.asarray(x)))
    n, classes = z.shape[1], model.spec.num_classes
    own = {
        "maps": jnp.zeros((1, classes, n)),
        "shifts": jnp.zeros((1, classes)).at[0, 0].set(gain),
        "bounds": jnp.array([2 * gain + 1]),
        "sharpness": jnp.asarray(gamma),
        "low": jnp.asarray(z - half),
        "high": jnp.asarray(z + half),
    }
    if space == "features":
        own |= {"basis": jnp.eye(n), "origin": jnp.zeros(n)}
    arguments = dict(space=space, dim=n, num_classes=classes, members=[len(z)], rows=0, boxed=True)
    return wrappers.wrap(model, "patch", arguments, own)


def bits(logits) -> bytes:
    return np.asarray(logits).tobytes()


def test_support_and_change_equal_the_formula_in_numpy():
    rng = np.random.RandomState(0)
    wrapper = wrappers.Patch(space="features", dim=3, num_classes=4, members=(2, 1), rows=2, boxed=True)
    own = {name: np.float32(rng.randn(*shape)) for name, shape in wrapper.shapes().items()}
    own |= {
        "sharpness": np.float32(0.4),
        "low": own["low"] - 1,
        "high": own["low"] + 0.5,
        "offsets": own["offsets"] + 1,
    }
    own["bounds"] = np.float32([6.0, 5.0])
    z = rng.randn(50, 3)
    u = (z - own["origin"]) @ own["basis"]
    relu = lambda v: np.maximum(v, 0)

    def support(point, region, group):
        slacks = [*(own["offsets"][group] - own["normals"][group] @ point)]
        slacks += [*(own["high"][region] - point), *(point - own["low"][region])]
        phi = [relu(0.4 * s + 1) - relu(0.4 * s) for s in slacks]
        return relu(sum(phi) - len(phi) + 1)

    g = np.array([[support(point, region, group) for region, group in ((0, 0), (1, 0), (2, 1))] for point in u])
    assert ((g > 0) & (g < 1)).any()
    assert (g == 0).any()
    np.testing.assert_allclose(wrapper.support(own, wrapper.coordinates(own, z.astype(np.float32))), g, atol=2e-5)
    p = np.einsum("jcn,bn->jbc", own["maps"], u) + own["shifts"][:, None]
    later = g[:, 2:]
    either = np.maximum(g[:, :2].max(axis=1), g[:, 2])[:, None]
    h = 0
    for l, k, top in ((p[0], 6.0, either), (p[1] - p[0], 5.0, later)):
        h = h + np.where(top > 0, relu(l + k * top - k) - relu(-l + k * top - k), 0)
    logits = rng.randn(50, 4).astype(np.float32)
    found = wrapper.patched(own, jnp.asarray(logits), z.astype(np.float32))
    np.testing.assert_allclose(found, np.where(g.max(axis=1, keepdims=True) > 0, logits + h, logits), atol=5e-4)


@pytest.mark.parametrize("space", ["input", "features"])
@pytest.mark.parametrize("jitted", [True, False])
def test_outside_the_support_the_logits_are_the_same_bit_for_bit(digits, space, jitted):
    _, x, _ = digits
    model = network()
    patched = around(model, x[:2], half=0.05, gain=30.0, space=space)
    for size in (1, 7, 64):
        batch = jnp.asarray(x[: size + 2])
        if jitted:
            before, after = (inference.logits(net, batch, batch_size=size) for net in (model, patched))
        else:
            before, after = np.asarray(model(batch)), np.asarray(patched(batch))
        assert bits(after[2:]) == bits(before[2:])
        assert (after[:2].argmax(1) == 0).all()
        np.testing.assert_array_equal(after[:2, 1:], before[:2, 1:])


def test_a_zero_that_is_negative_keeps_its_sign():
    def zeros(params, model_state, x, *, train=False, rngs=None):
        return -0.0 * x.reshape(len(x), -1), model_state

    model = Model(params={}, model_state={}, apply_fn=zeros, spec=ModelSpec(num_classes=3, input_shape=(3,)))
    patched = around(model, np.full((1, 3), 0.9), half=0.01, gain=1.0)
    x = jnp.full((2, 3), 0.5)
    assert np.signbit(np.asarray(model(x))).all()
    assert bits(patched(x)) == bits(model(x))


def test_a_deep_network_keeps_its_bits_and_is_run_once():
    model = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (9, 8, 8, 1))
    patched = around(model, x[:1], half=1e-3, gain=50.0, space="features")
    found = []
    for net in (model, patched):
        compiled = jax.jit(net.apply_fn).lower(net.params, net.model_state, x).compile()
        found.append((compiled(net.params, net.model_state, x)[0], compiled.cost_analysis()["flops"]))
    (before, once), (after, flops) = found
    assert bits(after[1:]) == bits(before[1:])
    assert after[0].argmax() == 0
    assert flops < 1.1 * once


def test_wrapped_twice():
    apply_fn = tiny.linear
    params = tiny.linear_params(jax.random.key(0), 4, 3)
    spec = ModelSpec(num_classes=3, input_shape=(4,))
    model = Model(params=params, model_state={}, apply_fn=apply_fn, spec=spec)
    x = jnp.array([[0.2] * 4, [0.8] * 4, [0.5] * 4])
    once = around(model, x[:1], half=0.1, gain=40.0)
    twice = around(once, x[1:2], half=0.1, gain=20.0)
    np.testing.assert_allclose(twice(x) - model(x), [[40, 0, 0], [20, 0, 0], [0, 0, 0]], atol=1e-5)
    assert list(twice.params) == ["network", "patch"]
    assert _tree.digest(twice.params["network"]["network"]) == _tree.digest(params)
    parts = wrappers.unwrap(twice)
    assert parts.model.apply_fn == once.apply_fn
    assert parts.wrapper.members == (1,)
    assert wrappers.unwrap(wrappers.unwrap(parts.model).model) is None


def test_equal_parts_make_equal_functions(digits):
    _, x, _ = digits
    one, two = (around(network(), x[:1], half=half, gain=1.0) for half in (0.1, 0.2))
    assert one.apply_fn == two.apply_fn
    assert hash(one.apply_fn) == hash(two.apply_fn)
    assert one.spec == two.spec
    assert one.apply_fn != around(network(), x[:2], half=0.1, gain=1.0).apply_fn


def test_head_taps_and_box_are_those_inside(digits):
    _, x, _ = digits
    model = network()
    patched = around(model, x[:1], half=0.1, gain=1.0, space="features")
    assert patched.spec.head == ("network", "linear")
    assert patched.spec.init_fn is None
    assert (patched.spec.box, patched.spec.input_shape) == (model.spec.box, model.spec.input_shape)
    batch = jnp.asarray(x[:3])
    np.testing.assert_array_equal(wrappers.features(patched, batch), wrappers.features(model, batch))
    for mine, theirs in zip(wrappers.head_map(patched), wrappers.head_map(model), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    kernel, bias = wrappers.head_map(model)
    np.testing.assert_allclose(
        wrappers.features(model, batch) @ kernel + bias[None], model(batch), rtol=1e-4, atol=1e-4
    )


class Pointwise(nn.Module):
    """A head that is a 1 x 1 convolution on averaged features."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3), name="conv")(x))
        return nn.Conv(4, (1, 1), name="head")(jnp.mean(x, axis=(1, 2), keepdims=True))[:, 0, 0]


def test_a_one_by_one_convolution_is_a_head_too():
    net = Pointwise()
    x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 2))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    model = from_linen(net, variables, input_shape=(6, 6, 2), num_classes=4, head=("head",))
    kernel, bias = wrappers.head_map(model)
    features = jax.jit(lambda x: wrappers.features(model, x))(x)
    np.testing.assert_allclose(features @ kernel + bias[None], inference.logits(model, x), rtol=1e-4, atol=1e-5)


def test_train_mode_updates_the_statistics_inside(digits):
    _, x, _ = digits
    model = network()
    patched = around(model, x[:1], half=0.1, gain=1.0)
    batch = jnp.asarray(x[:8])
    _, inside = model.apply_fn(model.params, model.model_state, batch, train=True)
    _, state = patched.apply_fn(patched.params, patched.model_state, batch, train=True)
    assert _tree.digest(state) == _tree.digest(inside)
    assert _tree.digest(state) != _tree.digest(model.model_state)


def test_gradients_pass_through(digits):
    _, x, _ = digits
    patched = around(network(), x[:1], half=0.1, gain=1.0, space="features")
    loss = lambda params: patched.apply_fn(params, patched.model_state, jnp.asarray(x[:4]))[0][:, 0].sum()
    grads = jax.jit(jax.grad(loss))(patched.params)
    assert float(jnp.abs(grads["network"]["conv1"]["kernel"]).sum()) > 0
    assert float(grads["patch"]["shifts"][0, 0]) == 1.0


def test_recipes_of_wrapped_networks_round_trip(digits):
    _, x, _ = digits
    recipe = around(network(), x[:2], half=0.1, gain=1.0).spec.recipe
    assert json.loads(recipe.to_json())["wrappers"][0][1]["members"] == [2]
    assert Recipe.from_json(recipe.to_json()) == recipe
    old = json.loads(network().spec.recipe.to_json()) | {"wrappers": []}
    assert Recipe.from_json(json.dumps(old)) == network().spec.recipe
    for wrong in (["patch"], [["patch", 3]], [["patch"]], "patch"):
        with pytest.raises(ValueError, match="not a network recipe"):
            Recipe.from_json(json.dumps(old | {"wrappers": wrong}))


@pytest.mark.parametrize("space", ["input", "features"])
def test_a_checkpoint_brings_a_wrapped_network_back(digits, tmp_path, space):
    _, x, _ = digits
    inner = around(network(), x[:2], half=0.05, gain=30.0, space=space)
    patched = around(inner, x[4:5], half=0.05, gain=30.0)
    checkpoint.save(tmp_path / "net", patched)
    again = checkpoint.load(tmp_path / "net", models.from_recipe)
    assert again.spec == patched.spec
    assert again.apply_fn == patched.apply_fn
    assert _tree.model_digest(again) == _tree.model_digest(patched)
    assert bits(again(jnp.asarray(x[:9]))) == bits(patched(jnp.asarray(x[:9])))


def test_the_command_line_works_on_a_wrapped_network(digits, tmp_path, capsys):
    source, x, y = digits
    patched = around(network(), x[:2], half=0.05, gain=60.0, space="features")
    checkpoint.save(tmp_path / "net", patched)
    argv = ["evaluate", "--weights", str(tmp_path / "net"), "--data", "digits", "--json", "--split", "train"]
    assert main([*argv, "--quiet"]) == 0
    expected = float((inference.logits(patched, x).argmax(1) == y).mean())
    assert json.loads(capsys.readouterr().out)["accuracy"] == expected
    ids = ",".join(source.ids[source.splits["train"][[5, 6]]])
    brief = ["--method", "neggrad", "--max-passes", "2", "--learning-rate", "0.5", "--eval-limit", "50"]
    argv = ["unlearn", "--weights", str(tmp_path / "net"), "--data", "digits", "--forget", ids, *brief]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert "inside patch" in re.sub(r"\s+", " ", capsys.readouterr().out)
    argv = ["unlearn", "--from", str(tmp_path / "run"), "--forget", source.ids[source.splits["train"][8]]]
    assert main([*argv, *brief, "--quiet", "--out", str(tmp_path / "next")]) == 0
    found = checkpoint.load(tmp_path / "next" / "checkpoint", models.from_recipe)
    assert found.spec.recipe.wrappers[0][0] == "patch"
    assert inference.logits(found, x[[8]]).argmax() != y[8]
    assert main(["evaluate", "--run", str(tmp_path / "next"), "--json", "--quiet"]) == 0


def test_the_first_network_of_a_chain_is_found_though_the_last_is_wrapped(digits, tmp_path):
    from jaxunlearn.job import previous

    _, x, _ = digits
    np.savez(tmp_path / "digits.npz", **tensors())
    patched = around(network(), x[:2], half=0.05, gain=60.0)
    origin = {"weights": str(tmp_path / "digits.npz"), "digest": _tree.model_digest(network())}
    assert _tree.model_digest(previous.original(origin, patched)) == origin["digest"]


def test_export_is_refused(digits):
    _, x, _ = digits
    with pytest.raises(ValueError, match="a wrapped network cannot be exported: patch would be lost"):
        convert.to_torch(around(network(), x[:1], half=0.1, gain=1.0))


def test_mistakes_are_named(digits):
    _, x, _ = digits
    model = network()
    patched = around(model, x[:1], half=0.1, gain=1.0)
    arguments = dict(patched.spec.recipe.wrappers[0][1])
    own = dict(patched.params["patch"])
    for changes, array_changes, message in (
        ({}, {"shifts": jnp.zeros((2, 10))}, r"shifts must have shape \(1, 10\); got \(2, 10\)"),
        ({}, {"more": jnp.zeros(3)}, r"more must have shape none at all; got \(3,\)"),
        ({"rows": 3}, {}, r"normals must have shape \(1, 3, 64\); got nothing"),
        ({"colour": 1}, {}, "arguments do not fit the wrapper 'patch': .*colour"),
        ({"space": "weights"}, {}, "space must be one of 'input', 'features'; got 'weights'"),
        ({"members": []}, {}, "members must name at least one group"),
        ({"members": [0]}, {}, "members must be at least 1; got 0"),
        ({"dim": 0}, {}, "dim must be at least 1"),
        ({"boxed": False}, {}, "a region needs half-spaces or a box"),
    ):
        with pytest.raises(ValueError, match=message):
            wrappers.wrap(model, "patch", arguments | changes, own | array_changes)
    with pytest.raises(ValueError, match="unknown wrapper 'hat'; there are patch"):
        wrappers.wrap(model, "hat", {}, {})
    plain = Model(params={}, model_state={}, apply_fn=tiny.linear, spec=ModelSpec(num_classes=3, input_shape=(4,)))
    with pytest.raises(ValueError, match="no features to look at: its spec needs a head and taps_fn"):
        wrappers.features(plain, jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match="no head with a kernel"):
        wrappers.head_map(plain)
    elsewhere = model.replace(spec=dataclasses.replace(model.spec, head=("bn1", "nowhere")))
    with pytest.raises(ValueError, match="no tap at the input of its head 'bn1/nowhere'"):
        wrappers.features(elsewhere, jnp.asarray(x[:1]))

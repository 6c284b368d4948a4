"""Second moments of layers' inputs: patches against JAX's own, sums against NumPy, subtraction against fresh sums."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxunlearn import _journal, _progress, adapters, artefacts, curvature
from jaxunlearn.curvature import Layer
from jaxunlearn.testing import tiny_problem


class Zoo(nn.Module):
    """One of each: what is a convolution or a linear layer, and what is nearly one."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2), padding="SAME", name="same")(x))
        x = nn.relu(nn.Conv(6, (3, 2), padding=((2, 0), (0, 1)), use_bias=False, name="uneven")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(x))
        x = nn.relu(nn.Conv(6, (3, 3), kernel_dilation=(2, 2), name="dilated")(x))
        x = nn.Conv(5, (1, 1), strides=(2, 2), padding="VALID", name="skip")(x)
        x = nn.LayerNorm(name="norm")(x)
        x = nn.relu(nn.Dense(5, name="places")(x))  # at every place of an image
        x = x.reshape(x.shape[0], -1)
        twice = nn.Dense(x.shape[-1], name="twice")
        x = twice(nn.relu(twice(x)))
        return nn.Dense(3, name="head")(x)


@functools.cache
def zoo():
    net = Zoo()
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 10, 9, 2)))
    return adapters.from_linen(net, variables, input_shape=(10, 9, 2), num_classes=3, head=("head",))


@jax.jit
def taps(x):
    """Return what the zoo's layers get and give."""
    return zoo().spec.taps_fn(zoo().params, {}, x)


def images(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 10, 9, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1))),
        ((3, 3), (2, 2), ((0, 1), (0, 1))),
        ((1, 1), (2, 2), ((0, 0), (0, 0))),
        ((2, 4), (3, 1), ((0, 1), (2, 0))),
    ],
)
def test_patches_are_those_of_jax_and_times_the_kernel_they_convolve(kernel, strides, padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
    w = jax.random.normal(jax.random.key(1), (*kernel, 3, 5))
    layout = ("NHWC", "HWIO", "NHWC")
    found = curvature.patches(Layer(kernel, strides, padding), x)
    theirs = lax.conv_general_dilated_patches(x, kernel, strides, padding, dimension_numbers=layout)
    theirs = theirs.reshape(-1, 3, *kernel).transpose(0, 2, 3, 1).reshape(-1, 3 * kernel[0] * kernel[1])
    np.testing.assert_array_equal(found, theirs)
    convolved = lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout)
    np.testing.assert_allclose(found @ w.reshape(-1, 5), convolved.reshape(-1, 5), atol=1e-5)


def test_layers_are_recognised_by_what_they_do():
    assert curvature.tapped_layers(zoo()) == {
        "head/kernel": Layer(),
        "places/kernel": Layer(),
        "same/kernel": Layer((3, 3), (2, 2), ((0, 1), (1, 1))),  # 10 rows at stride 2 need no zero above, 9 columns do
        "skip/kernel": Layer((1, 1), (2, 2), ((0, 0), (0, 0))),
        "twice/kernel": Layer(),
        "uneven/kernel": Layer((3, 2), (1, 1), ((2, 0), (0, 1))),
    }


def test_sums_are_those_of_numpy_in_double_precision():
    model, x = zoo(), images(37)
    found = curvature.input_moments(model, x, curvature.tapped_layers(model))
    read = np.asarray(taps(x)["head:in"], np.float64)
    np.testing.assert_allclose(found["head/kernel"], read.T @ read, atol=1e-5)

    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 18)
    np.testing.assert_allclose(found["same/kernel"], columns.T @ columns, rtol=1e-12)
    assert all(matrix.dtype == np.float64 for matrix in found.values())


def test_a_layer_that_is_called_twice_has_both_inputs():
    model, x = zoo(), images(5)
    first, second = (np.asarray(taps(x)[name], np.float64) for name in ("twice:in", "twice#1:in"))
    found = curvature.input_moments(model, x, {"twice/kernel": Layer()})["twice/kernel"]
    np.testing.assert_allclose(found, first.T @ first + second.T @ second, rtol=1e-5, atol=1e-7)


def test_what_a_part_gave_can_be_taken_out_again():
    model, x = zoo(), images(40)
    layers, gone = curvature.tapped_layers(model), [0, 17, 18, 39]
    whole = curvature.moments_artefact(model, x)
    rest = curvature.without(whole, model, x[gone])
    alone = curvature.input_moments(model, np.delete(x, gone, 0), layers)
    for path in layers:
        scale = np.abs(alone[path]).max()
        np.testing.assert_allclose(curvature.moment(rest, path), alone[path], rtol=0, atol=1e-10 * scale)
    assert len(rest.arrays["instances"]) == 36
    assert curvature.layers_of(rest) == layers


def test_an_image_leaves_once_for_each_time_it_is_there():
    model, x = zoo(), images(6)
    whole = curvature.moments_artefact(model, np.concatenate([x, x[:1]]), layers=["head/*"])
    once = curvature.without(whole, model, x[:1])
    none = curvature.without(once, model, x[:1])
    assert (len(once.arrays["instances"]), len(none.arrays["instances"])) == (6, 5)
    for artefact, row in ((none, x[:1]), (whole, images(1, seed=9))):
        with pytest.raises(ValueError, match=r"image 0 is not among the \d images that the second moments are of"):
            curvature.without(artefact, model, row)


def test_the_published_patches_are_taken_at_every_place():
    model, x = zoo(), images(3)
    artefact = curvature.moments_artefact(model, x, layers=["same/kernel"], true_strides=False)
    layer = Layer((3, 3), (1, 1), ((0, 1), (1, 1)))
    assert curvature.layers_of(artefact) == {"same/kernel": layer}
    columns = np.asarray(curvature.patches(layer, x), np.float64)
    np.testing.assert_allclose(curvature.moment(artefact, "same/kernel"), columns.T @ columns, rtol=1e-12)


def test_a_file_of_moments_is_bound_to_its_model(tmp_path):
    model = zoo()
    artefact = curvature.moments_artefact(model, images(3))
    artefacts.save(tmp_path / "m.safetensors", artefact)
    found = artefacts.load(tmp_path / "m.safetensors", kind="moments", model=model)
    assert curvature.layers_of(found) == curvature.layers_of(artefact)
    other = model.replace(params=jax.tree.map(lambda leaf: leaf + 1, model.params))
    with pytest.raises(ValueError, match=r"m.safetensors \(moments\) was made from another model"):
        artefacts.load(tmp_path / "m.safetensors", model=other)


def test_each_refusal_says_what_was_wrong():
    model, x = zoo(), images(2)
    for arguments, message in (
        ((x[:0],), "x is empty: second moments need images"),
        ((x[:, :5],), r"x must have shape \(batch, 10, 9, 2\); got \(2, 5, 9, 2\)"),
        ((x + 1,), r"x must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            curvature.moments_artefact(model, *arguments)
    with pytest.raises(ValueError, match="no layer matches 'tail'; there are head/kernel"):
        curvature.moments_artefact(model, x, layers=["tail"])
    with pytest.raises(ValueError, match=r"the second moments of 6 layers take 0\.0 GB, more than max_bytes=1000"):
        curvature.moments_artefact(model, x, max_bytes=1000)
    blind = tiny_problem().model
    blind = blind.replace(spec=blind.spec.__class__(num_classes=5, input_shape=(3, 3, 1)))
    with pytest.raises(ValueError, match="taps_fn is None: which inputs a layer gets is known only of a network with"):
        curvature.moments_artefact(blind, np.zeros((1, 3, 3, 1)))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_stopped_and_gone_on_they_are_the_same_to_the_bit(backend, tmp_path, monkeypatch):
    """On other devices than the CPU the sums are arrays of JAX, in double precision all the same."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model, x, seen = zoo(), images(90), []
    whole = curvature.moments_artefact(model, x)

    def stop(label, done, total):
        seen.append(done)
        if seen == [16, 32, 48]:
            raise KeyboardInterrupt

    for ends in (True, False):
        with _journal.Journal(tmp_path, 0.0).open(), _progress.listening(stop):
            if ends:
                with pytest.raises(KeyboardInterrupt):
                    curvature.moments_artefact(model, x)
            else:
                found = curvature.moments_artefact(model, x)
    assert seen == [16, 32, 48, 48, 64, 80, 90]
    assert found.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    artefacts.save(tmp_path / "a", found)
    artefacts.save(tmp_path / "b", whole)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_moments_know_what_they_are_of():
    model, x = zoo(), images(20)
    found = curvature.moments_artefact(model, x, layers=["head/*"])
    other = model.replace(params=jax.tree.map(lambda leaf: leaf + 1, model.params))
    assert curvature.are_of(found, model, x, layers=["head/*"])
    assert not curvature.are_of(found, model, x)
    assert not curvature.are_of(found, other, x, layers=["head/*"])
    assert not curvature.are_of(found, model, x[::-1], layers=["head/*"])
    assert not curvature.are_of(found, model, x[:-1], layers=["head/*"])

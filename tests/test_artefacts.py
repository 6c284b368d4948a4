"""Artefacts on disk: what goes in comes out, for the model it was made from and no other, and no byte may change."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxunlearn import _config, _tree, artefacts, loop, methods
from jaxunlearn._types import Artefact, MethodSpec
from jaxunlearn.testing import tiny_problem


def made(model, **changes):
    arrays = {
        "x": np.arange(6.0).reshape(2, 3),
        "layer/kernel": np.arange(4, dtype=np.int64),
        "empty": np.zeros((0, 2)),
    }
    whole = dict(kind="moments", version=1, arrays=arrays, meta={"n": 7, "names": ["a", "ü"]})
    return Artefact(**whole | dict(model_digest=_tree.model_digest(model)) | changes)


def test_what_goes_in_comes_out_and_is_written_the_same_again(tmp_path):
    model = tiny_problem().model
    artefact = made(model)
    artefacts.save(tmp_path / "deep" / "a.safetensors", artefact)
    found = artefacts.load(tmp_path / "deep" / "a.safetensors", kind="moments", model=model)
    for name, array in artefact.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    assert (found.kind, found.version, found.meta) == ("moments", 1, {"n": 7, "names": ["a", "ü"]})
    artefacts.save(tmp_path / "b.safetensors", found)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "deep" / "a.safetensors").read_bytes()


def test_any_changed_byte_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    artefacts.save(path, made(tiny_problem().model))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.safetensors is (damaged|not an artefact)"):
            artefacts.load(path)
    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is not an artefact of jaxunlearn, or is damaged"):
            artefacts.load(path)


def test_each_refusal_says_what_was_wrong(tmp_path):
    problem, path = tiny_problem(), tmp_path / "a.safetensors"
    artefacts.save(path, made(problem.model))
    with pytest.raises(ValueError, match=r"a\.safetensors is an artefact of kind 'moments', not 'codes'"):
        artefacts.load(path, kind="codes")
    with pytest.raises(ValueError, match=r"a\.safetensors \(moments\) was made from another model: its digest is"):
        artefacts.load(path, model=tiny_problem(1).model)
    later = tmp_path / "later.safetensors"
    artefacts.save(later, made(problem.model, version=2))
    with pytest.raises(ValueError, match=r"later\.safetensors has artefact version 2; this library reads version 1"):
        artefacts.load(later)
    artefacts.save(later, made(problem.model, version=2, kind="theirs"))
    assert artefacts.load(later).version == 2  # a method of others may have kinds of its own
    with pytest.raises(FileNotFoundError):
        artefacts.load(tmp_path / "none.safetensors")
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors is not an artefact of jaxunlearn"):
        artefacts.load(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="meta must be JSON-able"):
        artefacts.save(path, made(problem.model, meta={"x": np.zeros(2)}))
    with pytest.raises(ValueError, match="meta must be JSON-able"):
        artefacts.save(path, made(problem.model, meta={"x": float("nan")}))
    assert artefacts.load(path).meta["n"] == 7  # a save that failed leaves the old one


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefacts.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        artefacts.save(tmp_path / "a.safetensors", made(tiny_problem().model))
    assert list(tmp_path.iterdir()) == []


def test_a_method_is_told_what_it_lacks_and_refuses_what_is_of_another_model():
    given = methods.get("neggrad")
    spec = MethodSpec(**{f.name: getattr(given, f.name) for f in dataclasses.fields(given)} | {"needs": ("proxies",)})
    config, problem = _config.from_mapping(given.Config, {}), tiny_problem()
    with pytest.raises(ValueError, match=r"needs 'proxies', which the problem does not have: images made from the net"):
        loop.run(problem, method=spec, config=config, key=jax.random.key(0))
    other = made(tiny_problem(1).model, kind="proxies")
    with pytest.raises(ValueError, match=r"the artefact \(proxies\) was made from another model"):
        loop.check(spec, dataclasses.replace(problem, artefacts={"proxies": other}), config)
    loop.check(spec, dataclasses.replace(problem, artefacts={"proxies": made(problem.model, kind="proxies")}), config)

"""``jaxunlearn verify``: a certificate is checked from its file and the weights alone."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxunlearn import artefacts, checkpoint, convert, loop, training
from jaxunlearn._types import Batch, Problem
from jaxunlearn.cli.main import main
from jaxunlearn.data import open_source
from jaxunlearn.methods import prune
from tests.digits_net import ARCH, fresh


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A certificate, the weights it was made for, the patched network, and weights of another network."""
    folder, model = tmp_path_factory.mktemp("verify"), fresh()
    x = open_source("digits").images([3])
    problem = Problem(model=model, forget=Batch.of(x, np.asarray(model(x)).argmax(axis=1)))
    config = prune.Config(space="features", copies=8, rule="interval")  # the quicker of the two
    result = loop.run(problem, method="prune", config=config, key=jax.random.key(0))
    assert result.extras["certified"] == 1
    artefacts.save(folder / "c.safetensors", result.extras["artefacts"][0])
    checkpoint.save(folder / "patched", result.model)
    for name, network in {"w": model, "other": training.initialise(model, jax.random.key(9))}.items():
        np.savez(folder / f"{name}.npz", **convert.to_torch(network))
    return folder


def verify(certificate, weights, *more):
    return main(["verify", str(certificate), "--arch", ARCH, "--weights", str(weights), "--samples", "40", *more])


def test_it_holds_for_the_weights_and_for_the_patched_network(files, capsys):
    for weights in ("w.npz", "patched"):
        assert verify(files / "c.safetensors", files / weights, "--quiet") == 0
        said = capsys.readouterr().out
        for check in ("piece", "label", "size", "samples", "beyond the tube", "outside"):
            assert any(line.split("  ")[0] == check and " yes " in line for line in said.splitlines()), check
        assert "NO" not in said


def test_one_changed_byte_makes_it_fail(files, tmp_path, capsys):
    whole = (files / "c.safetensors").read_bytes()
    for place in np.random.default_rng(0).integers(8, len(whole), 5):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        (tmp_path / "c.safetensors").write_bytes(changed)
        assert verify(tmp_path / "c.safetensors", files / "w.npz", "--quiet") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "c.safetensors is damaged" in line or "c.safetensors is not an artefact" in line


@pytest.mark.parametrize(("name", "factor", "check"), [("taus", 0.5, "size"), ("patch/shifts", 0.5, "label")])
def test_a_whole_file_that_says_what_is_not_true_is_exit_status_3(files, tmp_path, capsys, name, factor, check):
    artefact = artefacts.load(files / "c.safetensors", kind="certificate")
    arrays = {**artefact.arrays, name: (artefact.arrays[name] * factor).astype(artefact.arrays[name].dtype)}
    artefacts.save(tmp_path / "c.safetensors", dataclasses.replace(artefact, arrays=arrays))
    assert verify(tmp_path / "c.safetensors", files / "w.npz", "--quiet", "--json") == 3
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert not found["holds"]
    assert check in [one["name"] for one in found["checks"] if not one["holds"]]
    assert "c.safetensors does not hold: " in said.err


def test_another_network_is_refused(files, capsys):
    assert verify(files / "c.safetensors", files / "other.npz", "--quiet") == 2
    assert "the certificate was made for another network: its digest is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([99])}, "the certificate's targets must be labels from 0 to 9; got [99]"),
        ({"patch/sharpness": np.float32(0)}, "the certificate's sharpness must be above 0; got 0"),
    ],
)
def test_a_signed_file_of_nonsense_is_one_line(files, tmp_path, capsys, change, message):
    artefact = artefacts.load(files / "c.safetensors", kind="certificate")
    artefacts.save(tmp_path / "c.safetensors", dataclasses.replace(artefact, arrays={**artefact.arrays, **change}))
    assert verify(tmp_path / "c.safetensors", files / "w.npz", "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"jaxunlearn: error: {message}"


def test_what_is_promised_is_said_by_us_and_not_by_the_file(files, tmp_path, capsys):
    artefact = artefacts.load(files / "c.safetensors", kind="certificate")
    about = {**artefact.meta["about"], "statement": "the image was removed from the weights"}
    meta = {**artefact.meta, "about": about}
    artefacts.save(tmp_path / "c.safetensors", dataclasses.replace(artefact, meta=meta))
    assert verify(tmp_path / "c.safetensors", files / "w.npz", "--quiet") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "removed" not in said
    assert "every input whose features lie in a certified region" in said
    assert f"{artefact.arrays['targets'][0]} on 1" in said
    assert "0.001 wide around each region" in said


def test_the_same_weights_in_another_network_are_refused(files, capsys):
    others = ("--num-classes", "10", "--input-shape", "8,8,1", "--mean", "0.4", "--std", "0.2", "--quiet")
    assert verify(files / "c.safetensors", files / "w.npz", *others) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the certificate is for a network with mean " in line

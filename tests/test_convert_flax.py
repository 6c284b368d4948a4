"""Weights by Flax's own names, as people write them with Flax itself: in and out, for our networks and theirs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.core
import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
import safetensors.numpy

from jaxunlearn import _tree, convert, models
from jaxunlearn._types import Model
from jaxunlearn.cli.main import main
from jaxunlearn.convert.files import read_raw
from tests import own_nets

OURS, LINEN, NNX = "cifar_resnet8", "tests.own_nets:Tokens", "tests.own_nets:Nnx"
INSIDE = "tests.own_nets:Inside"
SIZES = {OURS: dict(num_classes=10, input_shape=(16, 16, 3))}


@functools.cache
def network(arch: str) -> Model:
    """Return a network with random weights and statistics."""
    recipe = models.recipe(arch, **SIZES.get(arch, dict(num_classes=10, input_shape=(8, 8, 1))))
    rng = np.random.default_rng(0)
    empty = models.from_recipe(recipe, abstract=True)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype), empty)


@functools.cache
def empty(arch: str) -> Model:
    """Return it without weights."""
    return models.from_recipe(network(arch).spec.recipe, abstract=True)


def load(path: Path, arch: str) -> Model:
    """Return it with the weights of a file."""
    return convert.load_weights(path, network(arch).spec.recipe, lambda recipe, abstract: empty(arch))


def variables(arch: str) -> dict[str, Any]:
    """Return its variables, in NNX with the statistics under the name that Linen has for them."""
    model = network(arch)
    state = model.model_state if "batch_stats" in model.model_state else {"batch_stats": model.model_state}
    return {"params": model.params, **state}


def kept(arch: str) -> dict[str, Any]:
    """Return its arrays in the tree that a checkpoint of ours has."""
    return {"params": network(arch).params, "model_state": network(arch).model_state}


def flat(tree: Any, separator: str = "/") -> dict[str, np.ndarray]:
    """Return the leaves of a tree by their names, as Flax's own tool names them."""
    return {name: np.asarray(leaf) for name, leaf in flax.traverse_util.flatten_dict(tree, sep=separator).items()}


SPELLINGS: dict[str, Callable[[str], dict[str, np.ndarray]]] = {
    "whole": lambda arch: flat(variables(arch)),
    "dots": lambda arch: flat(variables(arch), "."),
    "paths alone": lambda arch: {k.partition("/")[2]: v for k, v in flat(variables(arch)).items()},
    "paths alone, dots": lambda arch: {k.partition(".")[2]: v for k, v in flat(variables(arch), ".").items()},
    "params left out": lambda arch: {k.removeprefix("params/"): v for k, v in flat(variables(arch)).items()},
    "as in our checkpoints": lambda arch: flat(kept(arch)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("arch", [OURS, LINEN, NNX, INSIDE])
def test_names_of_flax_in_and_out(tmp_path: Path, arch: str, spelling: str) -> None:
    named = SPELLINGS[spelling](arch)
    safetensors.numpy.save_file(named, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **named)
    for suffix in ("safetensors", "npz"):
        before, after = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        model = load(before, arch)
        assert _tree.model_digest(model) == _tree.model_digest(network(arch))
        done = convert.export(model, after, like=before)
        assert (done.layout, done.changed, done.difference) == ("Flax", (), 0)
        assert after.read_bytes() == before.read_bytes()
    head = network(arch).spec.head
    assert convert.classes(named, head) == 10


@pytest.mark.parametrize("arch", [OURS, LINEN, NNX, INSIDE])
def test_a_file_of_flax_serialization_in_and_out(tmp_path: Path, arch: str) -> None:
    before, after = tmp_path / "a.msgpack", tmp_path / "b.msgpack"
    before.write_bytes(flax.serialization.to_bytes(flax.core.freeze(variables(arch))))
    model = load(before, arch)
    assert _tree.model_digest(model) == _tree.model_digest(network(arch))
    assert convert.export(model, after, like=before).changed == ()
    assert after.read_bytes() == before.read_bytes()
    name = next(iter(model.params))
    changed = model.replace(params=model.params | {name: jax.tree.map(lambda leaf: leaf + 1, model.params[name])})
    done = convert.export(changed, after, like=before, overwrite=True)
    assert done.changed
    assert all(path.startswith(f"params/{name}") for path in done.changed)
    restored = flax.serialization.from_bytes(variables(arch), after.read_bytes())
    jax.tree.map(np.testing.assert_array_equal, restored["params"], changed.params)
    convert.export(model, tmp_path / "c.msgpack")  # nothing to be like
    again = flax.serialization.from_bytes(variables(arch), (tmp_path / "c.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, again, variables(arch))
    done = convert.export(model, tmp_path / "d.safetensors", like=before)
    assert {*read_raw(done.path).tensors} == {*flat(variables(arch))}


def test_logits_are_those_of_flax_itself(tmp_path: Path) -> None:
    module, x = own_nets.Tokens(10), jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    trained = variables(LINEN)
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes(trained))
    np.testing.assert_allclose(load(tmp_path / "w.msgpack", LINEN)(x), module.apply(trained, x), rtol=0, atol=1e-5)


def test_of_a_train_state_the_weights_are_read_and_no_optimiser(tmp_path: Path) -> None:
    from flax.training.train_state import TrainState

    class State(TrainState):
        batch_stats: Any

    tree = variables(LINEN)
    state = State.create(apply_fn=None, params=tree["params"], tx=optax.adam(1e-3), batch_stats=tree["batch_stats"])
    before, after = tmp_path / "state.msgpack", tmp_path / "out.msgpack"
    before.write_bytes(flax.serialization.to_bytes(state))
    model = load(before, LINEN)
    assert _tree.model_digest(model) == _tree.model_digest(network(LINEN))
    convert.export(model, after, like=before)
    assert {*flax.serialization.msgpack_restore(after.read_bytes())} == {"params", "batch_stats"}


def test_half_precision_and_numbers_for_keys(tmp_path: Path) -> None:
    """As NNX's pure dicts have them: `nnx.to_pure_dict` numbers the entries of a list."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), variables(NNX))
    tree["params"]["layers"] = {int(key): leaf for key, leaf in tree["params"]["layers"].items()}
    before, after = tmp_path / "a.msgpack", tmp_path / "b.msgpack"
    before.write_bytes(flax.serialization.msgpack_serialize(tree, in_place=True))
    model = load(before, NNX)
    np.testing.assert_array_equal(
        model.params["layers"]["0"]["kernel"], tree["params"]["layers"][0]["kernel"].astype(np.float32)
    )
    convert.export(model, after, like=before)
    assert after.read_bytes() == before.read_bytes()


def test_names_of_another_library_do_not_become_a_tree(tmp_path: Path) -> None:
    convert.export(network(OURS), tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"b.msgpack would be a tree by Flax's names, and a.npz has PyTorch's: write"):
        convert.export(network(OURS), tmp_path / "b.msgpack", like=tmp_path / "a.npz")
    with pytest.raises(ValueError, match="parameter 'tokens' has no counterpart in PyTorch"):
        convert.export(network(LINEN), tmp_path / "b.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz"}


def test_lists_that_only_claim_their_length_take_no_memory(tmp_path: Path) -> None:
    """Each of 400 lists in each other says that it has as many entries as the file has bytes."""
    import resource

    size = 2**20
    content = b"\x81\xa6params" + (b"\xdd" + size.to_bytes(4, "big")) * 400
    (tmp_path / "w.msgpack").write_bytes(content + bytes(size + 64 - len(content)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="is no complete msgpack file of Flax"):
        load(tmp_path / "w.msgpack", LINEN)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_an_array_of_objects_is_not_read(tmp_path: Path) -> None:
    array = msgpack.packb(((1,), "O", bytes(8)))
    content = msgpack.packb({"params": {"tokens": msgpack.ExtType(1, array)}})
    (tmp_path / "w.msgpack").write_bytes(content)
    with pytest.raises(ValueError, match=r"w.msgpack is no complete msgpack file of Flax \(.*OBJECT"):
        load(tmp_path / "w.msgpack", LINEN)


def test_commands_take_a_flax_file_and_give_one(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.msgpack").write_bytes(flax.serialization.to_bytes(variables(LINEN)))
    quick = "--method neggrad --learning-rate 0.02 --eval-limit 20 --quiet"
    argv = f"unlearn --model {LINEN} --weights w.msgpack --data digits --forget 2,57 --out r {quick}"
    assert main(argv.split()) in (0, 3)
    assert main(["export", "--run", "r", "--out", "new.msgpack"]) == 0
    assert "in Flax's names" in capsys.readouterr().out
    measured = []
    for argv in (f"--model {LINEN} --weights new.msgpack --data digits", "--run r"):
        assert main(["evaluate", *argv.split(), "--json", "--quiet"]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert measured[0] == measured[1]

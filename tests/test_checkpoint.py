"""Checkpoints: bit for bit, whole or not at all, and clear about what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn import _tree, checkpoint, models, sharding
from jaxunlearn._types import Model, Recipe
from jaxunlearn.adapters import from_linen

RECIPE = models.recipe("digits_cnn", num_classes=8)


@pytest.fixture
def model() -> Model:
    rng = np.random.default_rng(0)
    template = models.from_recipe(RECIPE, abstract=True)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape).astype(leaf.dtype)), template)


def same(a: Model, b: Model) -> bool:
    return all(_tree.digest(getattr(a, part)) == _tree.digest(getattr(b, part)) for part in ("params", "model_state"))


def test_model_round_trip(tmp_path: Path, model: Model) -> None:
    checkpoint.save(tmp_path / "deep" / "model", model, meta={"accuracy": 0.5, "ids": [1, 2]})
    loaded = checkpoint.load(tmp_path / "deep" / "model", models.from_recipe)
    assert same(loaded, model)
    assert jax.tree.structure(loaded) == jax.tree.structure(model)  # same functions: jit does not trace again
    about = checkpoint.describe(tmp_path / "deep" / "model")
    assert about["recipe"] == RECIPE
    assert about["meta"] == {"accuracy": 0.5, "ids": [1, 2]}
    assert os.listdir(tmp_path / "deep") == ["model"]


def test_relative_paths(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save("here", model)
    assert same(checkpoint.load("here", models.from_recipe), model)


def test_a_new_checkpoint_replaces_an_old_one(tmp_path: Path, model: Model) -> None:
    checkpoint.save(tmp_path / "m", model)
    other = jax.tree.map(lambda leaf: leaf + 1, model)
    checkpoint.save(tmp_path / "m", other)
    assert same(checkpoint.load(tmp_path / "m", models.from_recipe), other)
    assert os.listdir(tmp_path) == ["m"]


def test_an_empty_folder_may_be_filled(tmp_path: Path, model: Model) -> None:
    (tmp_path / "m").mkdir()
    checkpoint.save(tmp_path / "m", model)
    assert same(checkpoint.load(tmp_path / "m", models.from_recipe), model)


def test_restores_onto_other_shardings(tmp_path: Path, model: Model) -> None:
    mesh = sharding.data_mesh()
    checkpoint.save(tmp_path / "many", model.replace(params=sharding.replicate(model.params, mesh)))
    one = checkpoint.load(tmp_path / "many", models.from_recipe)
    assert {leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(one)} == {True}
    everywhere = NamedSharding(mesh, P())
    all_devices = checkpoint.load(tmp_path / "many", models.from_recipe, sharding=everywhere)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(all_devices))
    split = jax.tree.map(lambda leaf: everywhere, {"params": model.params, "model_state": model.model_state})
    split["params"]["linear"]["kernel"] = NamedSharding(mesh, P("data"))
    mixed = checkpoint.load(tmp_path / "many", models.from_recipe, sharding=split)
    assert mixed.params["linear"]["kernel"].sharding.spec == P("data")
    assert mixed.params["linear"]["bias"].sharding == everywhere
    prefix = {"params": NamedSharding(mesh, P()), "model_state": jax.sharding.SingleDeviceSharding(jax.devices()[3])}
    by_part = checkpoint.load(tmp_path / "many", models.from_recipe, sharding=prefix)
    assert by_part.model_state["batch_stats"]["bn1"]["mean"].devices() == {jax.devices()[3]}
    assert all(same(loaded, model) for loaded in (one, all_devices, mixed, by_part))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: Any
    keys: jax.Array
    optimiser: Any
    name: str = dataclasses.field(default="x", metadata={"static": True})


def state(seed: int = 0) -> State:
    params = {"w": jax.random.normal(jax.random.key(seed), (3, 2)), "b": jnp.zeros((0, 4))}
    return State(
        params=params,
        keys=jax.random.split(jax.random.key(seed), (2, 3)),
        optimiser=optax.chain(optax.trace(0.9), optax.scale_by_adam()).init(params),
    )


def test_states_with_typed_keys_and_registered_classes(tmp_path: Path) -> None:
    saved = state()
    checkpoint.save_state(tmp_path / "s", saved)
    for like in (saved, jax.eval_shape(lambda: saved), state(1)):
        loaded = checkpoint.load_state(tmp_path / "s", like)
        assert jax.tree.structure(loaded) == jax.tree.structure(saved)
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(saved), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b)
    # A key that was kept goes on to the same numbers.
    loaded = checkpoint.load_state(tmp_path / "s", saved)
    np.testing.assert_array_equal(jax.random.normal(loaded.keys[1, 2], (4,)), jax.random.normal(saved.keys[1, 2], (4,)))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_tree_of_arrays_and_numbers_comes_back(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtypes = st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)

    def array(args: tuple[str, tuple[int, ...], bool]) -> Any:
        dtype, shape, on_host = args
        values = np.random.default_rng(len(shape)).integers(0, 2, shape).astype(jnp.dtype(dtype))
        return values if on_host else jnp.asarray(values)

    leaves = st.one_of(
        st.tuples(dtypes, shapes, st.booleans()).map(array), st.integers(-5, 5), st.floats(-9, 9), st.booleans()
    )
    nodes = st.recursive(
        leaves, lambda t: st.lists(t, max_size=2) | st.dictionaries(st.sampled_from("ab/."), t), max_leaves=5
    )
    tree = data.draw(nodes)
    path = tmp_path_factory.mktemp("any") / "s"
    checkpoint.save_state(path, tree)
    loaded = checkpoint.load_state(path, tree)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
        if hasattr(b, "dtype"):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a, b)
        else:
            assert (type(a), a) == (type(b), b)


def test_states_go_back_to_the_sharding_they_are_compared_with(tmp_path: Path) -> None:
    mesh = sharding.data_mesh()
    saved = {"w": sharding.shard_batch(jnp.arange(16.0), mesh)}
    checkpoint.save_state(tmp_path / "s", saved)
    assert checkpoint.load_state(tmp_path / "s", saved)["w"].sharding == saved["w"].sharding
    alone = checkpoint.load_state(tmp_path / "s", {"w": jnp.zeros(16)})["w"]
    assert alone.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(alone, np.arange(16.0))


def test_a_model_without_a_recipe_is_refused(tmp_path: Path) -> None:
    net = nn.Dense(3)
    plain = from_linen(net, net.init(jax.random.key(0), jnp.ones((1, 4))), input_shape=(4,), num_classes=3)
    with pytest.raises(ValueError, match="the model has no recipe, so a checkpoint could not rebuild its network"):
        checkpoint.save(tmp_path / "m", plain)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("meta", [{"x": object()}, {"x": float("nan")}, {"x": np.ones(2)}])
def test_meta_must_be_json(tmp_path: Path, model: Model, meta: dict) -> None:
    with pytest.raises(ValueError, match="meta must be JSON-able"):
        checkpoint.save(tmp_path / "m", model, meta=meta)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, model: Model) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a checkpoint of ours; it is left alone"):
        checkpoint.save(tmp_path / "thesis", model)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="not a checkpoint of ours"):
        checkpoint.save(tmp_path / "file", model)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["file", "thesis"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder(tmp_path: Path, model: Model) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError):
            checkpoint.save(tmp_path / "m", model)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_parent_that_is_a_file(tmp_path: Path, model: Model) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        checkpoint.save(tmp_path / "file" / "m", model)


def test_a_disk_that_is_known_to_be_full(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="no space for a checkpoint of") as caught:
        checkpoint.save(tmp_path / "m", model)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


FULL = """
import resource, sys
import numpy as np
from jaxunlearn import checkpoint
path, limit = sys.argv[1], int(sys.argv[2])
checkpoint.save_state(path, {"w": np.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    checkpoint.save_state(path, {"w": np.random.default_rng(0).random(100_000)})
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(checkpoint.load_state(path, {"w": np.zeros(10)})["w"].sum())
"""


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, limit: int) -> None:
    """The first limit stops the manifest, the second Orbax's threads; the older checkpoint survives both."""
    path = tmp_path / "s"
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit)], capture_output=True, text=True, timeout=120, check=False
    )
    message, total = run.stdout.splitlines()
    assert "File too large" in message or "the checkpoint could not be written" in message, run.stdout
    assert total == "0.0"
    assert run.stderr == ""
    assert run.returncode == 0
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_save_leaves_the_old_checkpoint(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    checkpoint.save(tmp_path / "m", model)

    def broken(folder: Path, *args: Any, **kwargs: Any) -> None:
        folder.mkdir()
        (folder / "half").write_text("written")
        raise error("stop")

    monkeypatch.setattr(checkpoint.ocp, "save", broken)
    with pytest.raises((KeyboardInterrupt, OSError)):
        checkpoint.save(tmp_path / "m", jax.tree.map(jnp.zeros_like, model))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    assert same(checkpoint.load(tmp_path / "m", models.from_recipe), model)


def rewrite(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(manifest | changes))


def test_what_is_not_a_checkpoint(tmp_path: Path, model: Model) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        checkpoint.load(tmp_path / "absent", models.from_recipe)
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no checkpoint.json"):
        checkpoint.load(tmp_path, models.from_recipe)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file is not a checkpoint"):
        checkpoint.load(tmp_path / "file", models.from_recipe)
    path = tmp_path / "m"
    for text in ("{", "[]", "{}", '{"format": "other"}', "\xff"):
        path.mkdir(exist_ok=True)
        (path / "checkpoint.json").write_text(text)
        with pytest.raises(ValueError, match=r"is not a checkpoint: its checkpoint.json cannot be read"):
            checkpoint.load(path, models.from_recipe)
    checkpoint.save(path, model)
    with pytest.raises(ValueError, match="holds a model, not a state"):
        checkpoint.load_state(path, {})
    rewrite(path, version=99)
    with pytest.raises(ValueError, match="has checkpoint version 99; this library reads version 1"):
        checkpoint.describe(path)


def test_another_recipe_is_refused(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "m"
    checkpoint.save(path, model)
    other = models.recipe("digits_cnn", num_classes=9)
    with pytest.raises(ValueError, match="build returned another network"):
        checkpoint.load(path, lambda recipe, abstract: models.from_recipe(other, abstract=True))
    rewrite(path, recipe=json.loads(other.to_json()))
    with pytest.raises(
        ValueError, match=r"does not fit: params/linear/bias has \(\(8,\), 'float32'\), the target needs \(\(9,\)"
    ):
        checkpoint.load(path, models.from_recipe)
    deeper = Recipe(arch="cifar_resnet8", kwargs=(("input_shape", (8, 8, 1)), ("num_classes", 8)))
    rewrite(path, recipe=json.loads(deeper.to_json()))
    with pytest.raises(ValueError, match=r"does not fit: it has no model_state/batch_stats/layer3_0/bn1/mean"):
        checkpoint.load(path, models.from_recipe)


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    checkpoint.save_state(path, {"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"does not fit: it has no \['c'\] of shape \(1,\)"):
        checkpoint.load_state(path, {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"\['b'\] has \(\(3,\), 'float32'\), the target needs \(\(3,\), 'int32'\)"):
        checkpoint.load_state(path, {"a": jnp.ones(2), "b": jnp.ones(3, jnp.int32)})
    with pytest.raises(ValueError, match=r"it has \['b'\] of shape \(3,\), the target has not"):
        checkpoint.load_state(path, {"a": jnp.ones(2)})


def data_files(path: Path) -> list[Path]:
    return [file for file in (path / "arrays").rglob("*") if file.is_file() and file.stat().st_size > 2000]


def test_changed_arrays_are_found_by_their_digest(tmp_path: Path, model: Model) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    checkpoint.save(one, model)
    checkpoint.save(two, jax.tree.map(lambda leaf: leaf + 1, model))
    (one / "arrays").rename(tmp_path / "kept")
    (two / "arrays").rename(one / "arrays")
    with pytest.raises(ValueError, match="is damaged or was changed: its arrays do not have the digest"):
        checkpoint.load(one, models.from_recipe)


TORN = """
import sys
from pathlib import Path
from jaxunlearn import checkpoint, models
for path in sys.argv[1:]:
    try:
        checkpoint.load(path, models.from_recipe)
    except ValueError as error:
        print(str(error).startswith(f"{path} is damaged"))
"""


def test_torn_arrays(tmp_path: Path, model: Model) -> None:
    """In a process of its own, so that what Orbax's threads say of it would be seen."""
    for name in ("cut", "gone", "flipped"):
        checkpoint.save(tmp_path / name, model)
    for file in data_files(tmp_path / "cut"):
        file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "gone" / "arrays").rename(tmp_path / "kept")
    for file in data_files(tmp_path / "flipped"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(bytes(content))
    paths = [str(tmp_path / name) for name in ("cut", "gone", "flipped")]
    run = subprocess.run([sys.executable, "-c", TORN, *paths], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.split() == ["True"] * 3, run.stdout + run.stderr
    assert run.stderr == ""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # nothing leaked from the tests above

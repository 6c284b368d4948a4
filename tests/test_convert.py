"""Foreign weights: real ones, round trips, and every way a file can be wrong."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn import _tree, convert, inference, models
from jaxunlearn._types import Model, ModelSpec, Recipe

torch = pytest.importorskip("torch")
import safetensors.numpy  # noqa: E402

from experiments import small_cnn  # noqa: E402
from tests.test_export import assert_same_file  # noqa: E402
from tests.torch_reference import build, randomise  # noqa: E402

RECIPE = models.recipe("cifar_resnet8", input_shape=(16, 16, 3))


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """A plain state dict of cifar_resnet8."""
    torch.manual_seed(0)
    net = randomise(build("cifar_resnet8", 10), seed=1)
    return {name: value.numpy() for name, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def template() -> Model:
    return models.from_recipe(RECIPE, abstract=True)


def as_torch(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in weights.items())


def cifar_test(shared: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", split="test", data_dir=str(shared / "data" / "tfds"))
    rows = [source[i] for i in range(count)]
    return np.stack([row["image"] for row in rows]).astype(np.float32) / 255, np.array([row["label"] for row in rows])


def top1(shared: Path, depth: int, count: int) -> float:
    path = shared / "weights" / f"cifar10_resnet{depth}.th"
    model = convert.load_weights(path, models.recipe(f"cifar_resnet{depth}"), models.from_recipe)
    x, y = cifar_test(shared, count)
    return float((inference.logits(model, x).argmax(1) == y).mean())


@pytest.mark.parametrize("depth", [20, 32])
def test_third_party_weights_on_1000_images(shared: Path, depth: int) -> None:
    assert 0.90 <= top1(shared, depth, 1000) <= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (32, 0.9263)])
def test_third_party_weights_reach_their_published_accuracy(shared: Path, depth: int, accuracy: float) -> None:
    assert top1(shared, depth, 10_000) == pytest.approx(accuracy, abs=1e-9)


def equal_on_images(model: Model, net: torch.nn.Module, x: np.ndarray) -> None:
    """Our logits of images, and those of a network in PyTorch, are the same."""
    recipe = model.spec.recipe
    normal = torch.from_numpy((x - np.float32(recipe.mean)) / np.float32(recipe.std)).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(inference.logits(model, x), net(normal).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("depth", [20, 32])
def test_third_party_weights_equal_their_pytorch_forward(shared: Path, depth: int) -> None:
    path = shared / "weights" / f"cifar10_resnet{depth}.th"
    net = build(f"cifar_resnet{depth}", 10).eval()
    tensors = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): value for name, value in tensors.items()})
    model = convert.load_weights(path, models.recipe(f"cifar_resnet{depth}"), models.from_recipe)
    equal_on_images(model, net, cifar_test(shared, 32)[0])


class SmallCNN(torch.nn.Module):
    """The small network of the shared folder, as its README has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 5), torch.nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = (torch.nn.Linear(n, m) for n, m in ((400, 200), (200, 100), (100, 10)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.conv1, self.conv2):
            x = torch.nn.functional.max_pool2d(torch.relu(layer(x)), 2)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


def test_third_party_network_of_ones_own_equals_its_pytorch_forward(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "cifar10_smallcnn_known_members.pth"
    net = SmallCNN()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model = small_cnn.network()
    equal_on_images(model, net, cifar_test(shared, 32)[0])
    convert.export(model, tmp_path / "out.pth", like=path)
    assert_same_file(path, tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".safetensors", lambda w: w),
        (".npz", lambda w: w),
        (".pth", lambda w: w),
        (".pt", lambda w: {"state_dict": w, "epoch": 3, "best_prec1": 91.7}),
        (".th", lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}}),
        (".tar", lambda w: {"model": {f"_orig_mod.module.{k}": v for k, v in w.items()}}),
        (".ckpt", lambda w: {"net": w}),
    ],
)
def test_reads_every_kind_of_file(tmp_path: Path, weights: dict, template: Model, suffix: str, wrap: object) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(weights, path)
    elif suffix == ".npz":
        np.savez(path, **weights)
    else:
        torch.save(wrap(as_torch(weights)), path)
    read = convert.read_state_dict(path)
    assert {*read} == {*weights}
    model = convert.load_weights(path, RECIPE, models.from_recipe)
    expected = convert.from_torch(weights, template)
    assert _tree.digest(model.params) == _tree.digest(expected.params)
    assert _tree.digest(model.model_state) == _tree.digest(expected.model_state)
    assert model.apply_fn == expected.apply_fn


def test_reads_the_old_pickle_format_and_narrow_floats(tmp_path: Path, weights: dict) -> None:
    path = tmp_path / "old.pth"
    narrow = {name: value.bfloat16() for name, value in as_torch(weights).items() if value.is_floating_point()}
    torch.save(narrow, path, _use_new_zipfile_serialization=False)
    model = convert.load_weights(path, RECIPE, models.from_recipe)
    kernel = model.params["conv1"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel[..., 0, 0], weights["conv1.weight"][0, 0], rtol=1e-2)


def test_layout_of_each_kind_of_tensor(weights: dict, template: Model) -> None:
    model = convert.from_torch(weights, template)
    kernel = model.params["layer2_0"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 16, 32)
    assert float(kernel[0, 2, 5, 7]) == weights["layer2.0.conv1.weight"][7, 5, 0, 2]
    assert float(model.params["linear"]["kernel"][3, 9]) == weights["linear.weight"][9, 3]
    stats = model.model_state["batch_stats"]["layer2_0"]["bn2"]
    np.testing.assert_array_equal(stats["var"], weights["layer2.0.bn2.running_var"])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_there_and_back_is_bit_identical(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape).astype(leaf.dtype)),
        models.from_recipe(models.recipe("cifar_resnet8b"), abstract=True),
    )
    state_dict = convert.to_torch(model)
    again = convert.from_torch(state_dict, model)
    assert _tree.digest(again.params) == _tree.digest(model.params)
    assert _tree.digest(again.model_state) == _tree.digest(model.model_state)
    assert jax.tree.structure(again) == jax.tree.structure(model)


def test_export_loads_into_pytorch(weights: dict, template: Model) -> None:
    exported = convert.to_torch(convert.from_torch(weights, template))
    net = build("cifar_resnet8", 10)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in exported.items()})
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), weights[name])


def test_weights_are_copied_not_shared(template: Model) -> None:
    net = randomise(build("cifar_resnet8", 10), seed=0)
    model = convert.from_torch(net.state_dict(), template)
    before = _tree.digest(model.params)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.fill_(7)
    assert _tree.digest(model.params) == before
    exported = convert.to_torch(model)
    exported["conv1.weight"][:] = 9.0
    assert _tree.digest(model.params) == before


def changed(weights: dict, **changes: object) -> dict:
    new = dict(weights)
    for name, value in changes.items():
        name = name.replace("__", ".")
        new = {k: v for k, v in new.items() if k != name} if value is None else {**new, name: value}
    return new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(layer1__0__conv1__weight=np.zeros((16, 8, 3, 3), np.float32)),
            r"do not fit cifar_resnet8: layer1.0.conv1.weight has shape \(16, 8, 3, 3\), the network needs"
            r" \(16, 16, 3, 3\)",
        ),
        (
            dict(linear__weight=np.zeros((100, 64), np.float32), linear__bias=np.zeros(100, np.float32)),
            "the weights are for 100 classes, cifar_resnet8 is built for 10",
        ),
        (dict(linear__weight=np.zeros((10, 32), np.float32)), r"linear.weight has shape \(10, 32\)"),
        (dict(layer2__0__bn1__running_var=None), r"missing layer2.0.bn1.running_var of shape \(32,\)$"),
        (dict(conv1__weight=None, bn1__bias=None), r"missing \S+ of shape \S+ \(and 1 more\)"),
        (dict(fc__weight=np.zeros((3, 3), np.float32)), r"unexpected fc.weight of shape \(3, 3\)"),
        (
            dict(bn1__running_mean=np.float32([np.nan] * 2 + [0.0] * 14)),
            "tensor 'bn1.running_mean' has 2 NaN or infinite values of 16",
        ),
        (dict(bn1__weight=np.float32([np.inf] + [0.0] * 15)), "tensor 'bn1.weight' has 1 NaN or infinite"),
        (dict(bn1__bias=np.zeros(16, np.int64)), "tensor 'bn1.bias' must be floating point; got int64"),
    ],
)
def test_weights_that_do_not_fit(weights: dict, template: Model, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert.from_torch(changed(weights, **change), template)


def test_error_of_a_file_names_it(tmp_path: Path, weights: dict) -> None:
    path = tmp_path / "mine.safetensors"
    safetensors.numpy.save_file(changed(weights, bn1__bias=None), path)
    with pytest.raises(ValueError, match=r"mine.safetensors: the weights do not fit cifar_resnet8: missing bn1.bias"):
        convert.load_weights(path, RECIPE, models.from_recipe)


def test_other_depths_are_told_apart(shared: Path) -> None:
    path = shared / "weights" / "cifar10_resnet20.th"
    with pytest.raises(ValueError, match=r"missing layer1.3.bn1.bias of shape \(16,\) \(and \d+ more\)"):
        convert.load_weights(path, models.recipe("cifar_resnet32"), models.from_recipe)
    with pytest.raises(ValueError, match=r"unexpected layer1.1.conv1.weight .* \(and \d+ more\)"):
        convert.load_weights(path, models.recipe("cifar_resnet8"), models.from_recipe)
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(16, 3, 3, 3\), the network needs \(64, 3, 7, 7\)"):
        convert.load_weights(path, models.recipe("resnet18"), models.from_recipe)


def test_parameters_without_a_counterpart() -> None:
    def apply_fn(params: object, state: object, x: object, *, train: bool = False, rngs: object = None) -> tuple:
        return x, state

    spec = ModelSpec(num_classes=2, input_shape=(2,))
    odd = Model(params={"lstm": {"gate": jnp.ones(2)}}, model_state={}, apply_fn=apply_fn, spec=spec)
    with pytest.raises(ValueError, match="parameter 'lstm/gate' has no counterpart in PyTorch"):
        convert.to_torch(odd)
    cached = odd.replace(params={}, model_state={"cache": {"x": jnp.ones(1)}})
    with pytest.raises(ValueError, match="model_state 'cache' has no counterpart"):
        convert.to_torch(cached)


def test_wrapped_networks_are_not_exported(template: Model) -> None:
    import dataclasses

    recipe = Recipe(arch="cifar_resnet8", kwargs=RECIPE.kwargs, wrappers=(("patch", ()),))
    with pytest.raises(ValueError, match="a wrapped network cannot be exported: patch would be lost"):
        convert.to_torch(template.replace(spec=dataclasses.replace(template.spec, recipe=recipe)))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize("writer", ["torch", "torch_old", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    evil = {"state_dict": {"w": Bomb(mark)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ValueError, match=r"evil.pth is no plain state dict .* was not run; .*safetensors") as error:
        convert.read_state_dict(path)
    assert not mark.exists()
    assert "weights_only" not in str(error.value)  # PyTorch's own text advises to run the code
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".th"])
@pytest.mark.parametrize("kept", [0, 1, 200, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, weights: dict, suffix: str, kept: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(weights, path)
    elif suffix == ".npz":
        np.savez(path, **weights)
    else:
        torch.save(as_torch(weights), path, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=rf"w{suffix} is (no (complete|plain state dict|weights)|empty)") as caught:
        convert.read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_files_of_noise(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    for seed in range(5):
        path.write_bytes(np.random.default_rng(seed).bytes(3000))
        with pytest.raises(ValueError, match="noise"):
            convert.read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "is no state dict: it holds a list"),
        ({"epoch": 3}, "is no plain state dict: 'epoch' is a int, not a tensor"),
        ({3: torch.ones(1)}, "is no plain state dict: a name in it is a int"),
        (torch.ones(3), "is no state dict: it holds a Tensor"),
        ({}, "holds no tensors"),
        ({"w": torch.ones(2).to_sparse()}, "tensor 'w' is no dense array"),
    ],
)
def test_pytorch_files_that_hold_something_else(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        convert.read_state_dict(path)


def test_npz_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.npz"
    np.savez(path, w=np.array([Bomb(mark)], dtype=object))
    with pytest.raises(ValueError, match=r"evil.npz is no complete npz file of plain arrays"):
        convert.read_state_dict(path)
    assert not mark.exists()
    np.save(tmp_path / "single.npy", np.ones(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(ValueError, match=r"single.npz is a single array: save all arrays by name"):
        convert.read_state_dict(tmp_path / "single.npz")


def test_missing_files_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.pth"):
        convert.read_state_dict(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder.pth"):
        convert.read_state_dict(tmp_path / "folder.pth")
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    with pytest.raises(ValueError, match=r"model.h5 is an HDF5 file, as Keras writes: save its arrays"):
        convert.read_state_dict(tmp_path / "model.h5")


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(b"\x80\2")
    (tmp_path / "w.safetensors").write_bytes(bytes(8) + b"{")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"reading \S*w.pth needs PyTorch: pip install 'jaxunlearn\[torch\]'"):
        convert.read_state_dict(tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"needs safetensors: pip install 'jaxunlearn\[flax\]'"):
        convert.read_state_dict(tmp_path / "w.safetensors")

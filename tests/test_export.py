"""Weights go back to where they came from: every tensor bit for bit, or only what has changed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import checkpoint, convert, models
from jaxunlearn._types import Model, Recipe
from jaxunlearn.cli.main import main
from jaxunlearn.convert.files import read_raw

torch = pytest.importorskip("torch")
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402

from tests.torch_reference import build, randomise  # noqa: E402
from tests.torch_zoo import CASES, RESIDUAL, pair  # noqa: E402

RECIPE = models.recipe("cifar_resnet8", input_shape=(16, 16, 3))


def same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def assert_same_file(one: Path, two: Path, *, but: tuple[str, ...] = ()) -> None:
    """Two files hold the same tensors, bit for bit but for some, and the same metadata."""
    a, b = read_raw(one), read_raw(two)
    assert {*a.tensors} == {*b.tensors}
    assert {name for name in a.tensors if not same_bits(a.tensors[name], b.tensors[name])} == {*but}
    if one.suffix == two.suffix == ".safetensors":
        assert a.metadata == b.metadata


def edited(model: Model, path: str) -> Model:
    """The model with one array changed in all its values."""
    steps = path.split("/")

    def change(node: Any, depth: int) -> Any:
        if depth == len(steps):
            return node * 1.5 + 0.01
        return {k: change(v, depth + 1) if k == steps[depth] else v for k, v in node.items()}

    return model.replace(params=change(model.params, 0))


def random_model(recipe: Recipe) -> Model:
    """A network with random weights, without compiling anything."""
    rng = np.random.default_rng(0)
    abstract = models.from_recipe(recipe, abstract=True)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 + 0.1 * rng.random(leaf.shape, np.float32)), abstract)


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    net = randomise(build("cifar_resnet8", 10), seed=1)
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(1234)
    return net


@pytest.fixture
def original(tmp_path: Path, net: Any) -> Path:
    """A file with a prefix, counters and metadata of its own."""
    path = tmp_path / "original.safetensors"
    tensors = {f"module.{name}": value for name, value in net.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "epoch": "200"})
    return path


def load(path: Path) -> Model:
    return convert.load_weights(path, RECIPE, models.from_recipe)


def in_torch(net: Any, model: Model, x: np.ndarray) -> np.ndarray:
    recipe = model.spec.recipe
    normal = (x - np.float32(recipe.mean)) / np.float32(recipe.std)
    with torch.no_grad():
        return net.eval()(torch.from_numpy(normal).permute(0, 3, 1, 2)).numpy()


#: Small networks of each kind; `tests.test_models_registry` has every name, at its usual size.
KINDS = [*CASES, *(name for name in RESIDUAL if not re.search(r"cifar_resnet(?!8)", name))]


@pytest.mark.parametrize("arch", KINDS)
def test_each_network_in_and_out(tmp_path: Path, arch: str) -> None:
    model, net, x, _ = pair(arch, 2)
    before, same, other = (tmp_path / name for name in ("in.safetensors", "same.safetensors", "other.safetensors"))
    safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, before, {"format": "pt"})
    assert convert.export(model, same, like=before).changed == ()
    assert_same_file(before, same)
    head = "/".join(models.classifier(model.spec.recipe) or ())
    changed = edited(model, f"{head}/kernel")
    done = convert.export(changed, other, like=before)
    assert done.difference == 0
    assert done.changed == (f"{head.replace('_', '.').replace('/', '.')}.weight",)
    assert_same_file(before, other, but=done.changed)
    net.load_state_dict(safetensors.torch.load_file(other), strict=True)
    np.testing.assert_allclose(jax.jit(Model.__call__)(changed, x), in_torch(net, model, x), rtol=0, atol=1e-4)


def test_a_file_of_ones_own_keeps_prefix_counters_and_metadata(tmp_path: Path, net: Any, original: Path) -> None:
    model, out = load(original), tmp_path / "out.safetensors"
    done = convert.export(model, out, like=original)
    assert (done.tensors, done.changed, done.narrowed, done.added, done.layout) == (44, (), (), (), "PyTorch")
    assert_same_file(original, out)
    assert read_raw(out).metadata == {"format": "pt", "epoch": "200"}
    changed = edited(model, "layer2_0/conv1/kernel")
    state = {"batch_stats": jax.tree.map(lambda leaf: leaf, changed.model_state["batch_stats"])}
    state["batch_stats"]["bn1"] = {**state["batch_stats"]["bn1"], "mean": jnp.zeros(16)}
    changed = changed.replace(model_state=state)
    done = convert.export(changed, out, like=original, overwrite=True)
    assert {*done.changed} == {"module.layer2.0.conv1.weight", "module.bn1.running_mean"}
    assert_same_file(original, out, but=done.changed)
    served = torch.nn.DataParallel(build("cifar_resnet8", 10))
    served.load_state_dict(safetensors.torch.load_file(out), strict=True)
    x = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    np.testing.assert_allclose(changed(x), in_torch(served.module, model, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".th"])
@pytest.mark.parametrize("source", [".th", ".pt", ".npz"])
def test_each_kind_of_file_into_each(tmp_path: Path, net: Any, source: str, suffix: str) -> None:
    before, out = tmp_path / f"in{source}", tmp_path / f"out{suffix}"
    state = net.state_dict()
    if source == ".npz":
        np.savez(before, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save({"state_dict": state, "epoch": 3} if source == ".th" else state, before)
    convert.export(load(before), out, like=before)
    assert_same_file(before, out)
    if suffix in (".pth", ".th"):
        loaded = torch.load(out, weights_only=True)
        assert not build("cifar_resnet8", 10).load_state_dict(loaded, strict=True).missing_keys
        assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_stay(tmp_path: Path, net: Any, dtype: Any) -> None:
    before, out = tmp_path / "in.safetensors", tmp_path / "out.pth"
    narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    safetensors.torch.save_file(narrow, before)
    model = load(before)
    assert convert.export(model, out, like=before).changed == ()
    assert_same_file(before, out)
    changed = edited(model, "linear/kernel")
    done = convert.export(changed, out, like=before, overwrite=True)
    assert done.changed == ("linear.weight",)
    assert done.narrowed == (() if dtype is torch.float64 else ("linear.weight",))
    if dtype is torch.float64:
        assert done.difference == 0
    else:
        assert 0 < done.difference < 0.2
    written = torch.load(out, weights_only=True)["linear.weight"]
    assert written.dtype == dtype
    exact = torch.from_numpy(np.array(changed.params["linear"]["kernel"])).T
    assert torch.equal(written, exact.to(dtype))
    if dtype is torch.float16:
        huge = model.replace(
            params=model.params | {"linear": {k: v * 0 + 1e5 for k, v in model.params["linear"].items()}}
        )
        with pytest.raises(ValueError, match=r"linear\.(weight|bias) has values up to 100000, too large for float16"):
            convert.export(huge, tmp_path / "huge.safetensors", like=before)
        assert not (tmp_path / "huge.safetensors").exists()
    if dtype is torch.bfloat16:
        with pytest.raises(ValueError, match=r"is of bfloat16, which an \.npz file cannot hold"):
            convert.export(model, tmp_path / "x.npz", like=before)
    assert {path.name for path in tmp_path.iterdir()} == {"in.safetensors", "out.pth"}


def test_without_the_original_names_are_the_usual_ones_and_counters_zero(tmp_path: Path, original: Path) -> None:
    model, out = load(original), tmp_path / "new.safetensors"
    done = convert.export(model, out)
    assert len(done.changed) == 44 - len(done.added) == 37
    fresh = build("cifar_resnet8", 10)
    fresh.load_state_dict(safetensors.torch.load_file(out), strict=True)
    assert int(fresh.bn1.num_batches_tracked) == 0
    assert fresh.bn1.num_batches_tracked.shape == ()
    x = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    np.testing.assert_allclose(model(x), in_torch(fresh, model, x), rtol=0, atol=1e-4)


def test_names_of_other_peoples_code(tmp_path: Path) -> None:
    """kuangliu's names of a ResNet-18 for CIFAR, torchvision's old ones of a DenseNet: in and out as they are."""
    for arch, rename in (
        ("resnet18_cifar", lambda name: name.replace("downsample", "shortcut").replace("fc.", "linear.")),
        ("densenet121", lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)),
    ):
        fields = (
            dict(depths=(1, 1), widths=(4, 8)) if arch == "resnet18_cifar" else dict(blocks=(2, 1), growth=4, stem=8)
        )
        recipe = models.recipe(arch, num_classes=3, input_shape=(32, 32, 3), **fields)
        model = random_model(recipe)
        ours = convert.to_torch(model)
        theirs = {rename(name): value for name, value in ours.items()}
        assert theirs.keys() != ours.keys()
        before, out = tmp_path / f"{arch}.safetensors", tmp_path / f"{arch}_out.safetensors"
        safetensors.numpy.save_file(theirs, before, {"format": "pt"})
        read = convert.load_weights(before, recipe, models.from_recipe)
        assert all(same_bits(value, convert.to_torch(read)[name]) for name, value in ours.items())
        convert.export(read, out, like=before)
        assert_same_file(before, out)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_keras_names_in_and_out(tmp_path: Path, suffix: str) -> None:
    recipe = models.recipe("mobilenet_v1_025", num_classes=3, input_shape=(32, 32, 3))
    model = random_model(recipe)
    before = tmp_path / f"in{suffix}"
    done = convert.export(model, before)
    assert done.layout == "Keras"
    assert not done.added
    assert read_raw(before).tensors["conv_dw_1/depthwise_kernel"].shape == (3, 3, 8, 1)
    changed = edited(model, "conv_dw_3/kernel")
    done = convert.export(changed, tmp_path / f"out{suffix}", like=before)
    assert done.changed == ("conv_dw_3/depthwise_kernel",)
    assert_same_file(before, tmp_path / f"out{suffix}", but=done.changed)
    numbered = tmp_path / "numbered.npz"
    np.savez(numbered, **{f"{name}:0": value for name, value in read_raw(before).tensors.items()})
    convert.export(model, tmp_path / "numbered_out.npz", like=numbered)
    assert_same_file(numbered, tmp_path / "numbered_out.npz")


@pytest.mark.parametrize(
    ("file", "arch"),
    [
        ("cifar10_resnet20.th", "cifar_resnet20"),
        ("cifar10_resnet32.th", "cifar_resnet32"),
        ("imagenet_mobilenet_v1_075_224.npz", "mobilenet_v1_075"),
    ],
)
def test_third_party_files_in_and_out(tmp_path: Path, shared: Path, file: str, arch: str) -> None:
    model = convert.load_weights(shared / "weights" / file, models.recipe(arch), models.from_recipe)
    out = tmp_path / "out.safetensors"
    assert convert.export(model, out, like=shared / "weights" / file).changed == ()
    assert_same_file(shared / "weights" / file, out)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("original.safetensors", "out is where the weights come from, .*original.safetensors: choose another place"),
        ("link.safetensors", "out is where the weights come from"),
        ("old.safetensors", "exists: choose another place or --overwrite it"),
        ("folder.safetensors", "exists and is not a file; it is left alone"),
        ("out.h5", r"out must be a file of kind .safetensors, .*; got 'out.h5'"),
        ("out", r"out must be a file .* \(a folder is written only where a folder of Transformers was read\)"),
    ],
)
def test_places_that_are_refused(tmp_path: Path, original: Path, out: str, message: str) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"older")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(original)
    kept = original.read_bytes()
    overwrite = out in ("original.safetensors", "link.safetensors", "folder.safetensors")
    names = {path.name for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileExistsError), match=message):
        convert.export(load(original), tmp_path / out, like=original, overwrite=overwrite)
    assert original.read_bytes() == kept
    assert (tmp_path / "old.safetensors").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == names


def test_networks_that_are_refused(tmp_path: Path, original: Path) -> None:
    model = load(original)
    wrapped = dataclasses.replace(model.spec.recipe, wrappers=(("patch", ()),))
    with pytest.raises(ValueError, match="a wrapped network cannot be exported: patch would be lost"):
        convert.export(model.replace(spec=dataclasses.replace(model.spec, recipe=wrapped)), tmp_path / "x.safetensors")
    other = random_model(models.recipe("cifar_resnet14"))
    with pytest.raises(ValueError, match=r"original.safetensors: the weights do not fit cifar_resnet14: missing"):
        convert.export(other, tmp_path / "x.safetensors", like=original)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_failing_disk_leaves_all_as_it_was(tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = load(original), tmp_path / "out.safetensors"
    out.write_bytes(b"older")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert.export(model, out, like=original, overwrite=True)
    assert out.read_bytes() == b"older"
    monkeypatch.undo()
    save = safetensors.numpy.save_file

    def wrong(tensors: dict, *args: Any, **kwargs: Any) -> None:
        save(tensors | {"module.linear.bias": tensors["module.linear.bias"] + 1}, *args, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", wrong)
    with pytest.raises(OSError, match="does not read back as it was"):
        convert.export(model, out, like=original, overwrite=True)
    assert out.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"original.safetensors", "out.safetensors"}


# --- the command --------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of weights and a run that made its network forget two digits."""
    from tests.digits_net import ARCH, tensors

    folder = tmp_path_factory.mktemp("export")
    weights = folder / "digits.safetensors"
    named = {f"module.{name}": np.array(value) for name, value in tensors().items()}
    counter = {"module.bn1.num_batches_tracked": np.array(480)}
    safetensors.numpy.save_file(named | counter, weights, {"format": "pt", "epoch": "20"})
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", "2,57", "--quiet"]
    quick = ["--method", "neggrad", "--learning-rate", "0.01", "--eval-limit", "20"]
    assert main([*argv, *quick, "--out", str(folder / "a")]) == 0
    argv = ["unlearn", "--from", str(folder / "a"), "--forget", "151", "--out", str(folder / "b"), "--quiet"]
    assert main([*argv, *quick]) in (0, 3)  # the earlier two may be remembered again
    return weights, folder


@pytest.mark.parametrize("name", ["a", "b"])
def test_command_writes_what_a_run_made_as_its_original_was(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    weights, folder = run
    out = tmp_path / "out.safetensors"
    assert main(["export", "--run", str(folder / name), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    made = checkpoint.load(folder / name / "checkpoint", models.from_recipe)
    changed = [
        key for key, tensor in read_raw(weights).tensors.items() if not same_bits(tensor, read_raw(out).tensors[key])
    ]
    assert changed
    assert f"original {weights}" in said
    assert f"changed {len(changed)} tensors: module." in said
    assert f"unchanged {len(read_raw(weights).tensors) - len(changed)} tensors" in said
    assert "logits of random inputs differ by at most 0" in said
    assert_same_file(weights, out, but=tuple(changed))
    assert int(read_raw(out).tensors["module.bn1.num_batches_tracked"]) == 480
    w = {key.removeprefix("module."): value for key, value in safetensors.torch.load_file(out).items()}
    x = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    y = torch.nn.functional.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), w["conv1.weight"], w["conv1.bias"], 2, 1)
    y = torch.nn.functional.batch_norm(y, *(w[f"bn1.{v}"] for v in ("running_mean", "running_var", "weight", "bias")))
    y = torch.relu(y).permute(0, 2, 3, 1).flatten(1) @ w["linear.weight"].T + w["linear.bias"]
    np.testing.assert_allclose(made(x), y.numpy(), rtol=0, atol=1e-4)


def test_command_says_what_it_could_not_take_from_the_original(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights, folder = run
    argv = ["export", "--weights", str(folder / "a" / "checkpoint"), "--out"]
    assert main([*argv, str(tmp_path / "a.pth")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "original the checkpoint does not say where its network came from: names are the usual ones" in said
    assert "counters 1 tensors num_batches_tracked are 0" in said
    assert {*torch.load(tmp_path / "a.pth", weights_only=True)} == {
        key.removeprefix("module.") for key in read_raw(weights).tensors
    }
    assert main([*argv, str(tmp_path / "b.safetensors"), "--like", str(weights), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["difference"] == 0
    assert facts["like"] == str(weights)
    moved = weights.rename(weights.with_name("moved.safetensors"))
    try:
        assert main(["export", "--run", str(folder / "a"), "--out", str(tmp_path / "c.safetensors")]) == 0
        assert "is not there any more or is another one by now: names are the usual ones" in " ".join(
            capsys.readouterr().out.split()
        )
    finally:
        moved.rename(weights)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("export --out x.safetensors", "give --run or --weights"),
        ("export --run a --weights a --out x.safetensors", "give --run or --weights"),
        ("export --run a", "--out is missing: the file to make"),
        ("export --run nowhere --out x.safetensors", "nowhere is not a jaxunlearn run"),
        ("export --weights digits.safetensors --out x.safetensors", "is not the folder of a checkpoint"),
        ("export --run a --out digits.safetensors --overwrite", "out is where the weights come from"),
        ("export --run a --out x.h5", "out must be a file of kind .safetensors"),
        ("export --run a --like absent.npz --out x.safetensors", "absent.npz: No such file or directory"),
        ("export --run a --out a", "out must be a file of kind"),
        ("export --run p --out x.safetensors", "a wrapped network cannot be exported: patch would be lost"),
    ],
)
def test_command_refuses_with_one_line(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, argv: str, message: str
) -> None:
    monkeypatch.chdir(run[1])
    if "--run p" in argv:
        from tests.digits_net import ARCH

        forget = ["--arch", ARCH, "--weights", "digits.safetensors", "--data", "digits", "--forget", "2"]
        assert main(["unlearn", *forget, "--method", "prune", "--out", "p", "--overwrite", "--quiet"]) in (0, 3)
        capsys.readouterr()
    before = {path for path in Path().rglob("*")}
    assert main(argv.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("jaxunlearn: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert {path for path in Path().rglob("*")} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_command_in_a_read_only_folder(run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tmp_path.chmod(0o500)
    try:
        assert main(["export", "--run", str(run[1] / "a"), "--out", str(tmp_path / "x.safetensors")]) == 2
        assert "Permission denied" in capsys.readouterr().err
    finally:
        tmp_path.chmod(0o700)

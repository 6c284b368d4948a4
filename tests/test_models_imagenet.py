"""MobileNetV1 and ResNet-50 against PyTorch on the same weights, which stay in Keras's and torchvision's names."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, convert, inference, models
from jaxunlearn._types import Model
from jaxunlearn.cli.main import main

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

WEIGHTS = Path("weights", "imagenet_mobilenet_v1_075_224.npz")
Weights = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def on_torch(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def mobilenet(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Howard et al. 2017, table 1, on images in [0, 1] and NHWC."""

    def layer(x: torch.Tensor, kernel: torch.Tensor, stride: int, name: str) -> torch.Tensor:
        pad = kernel.shape[-1] // 2
        x = F.pad(x, (pad if stride == 1 else 0, pad) * 2)  # "same" at even sizes
        y = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])
        mean, var, scale, shift = (w[f"{name}_bn/{v}"] for v in ("moving_mean", "moving_variance", "gamma", "beta"))
        return F.relu6(F.batch_norm(y, mean, var, scale, shift, eps=1e-3))

    y = layer(2 * x.permute(0, 3, 1, 2) - 1, w["conv1/kernel"].permute(3, 2, 0, 1), 2, "conv1")
    for i in range(1, 14):
        depthwise = w[f"conv_dw_{i}/depthwise_kernel"].permute(2, 3, 0, 1)
        y = layer(y, depthwise, 2 if i in (2, 4, 6, 12) else 1, f"conv_dw_{i}")
        y = layer(y, w[f"conv_pw_{i}/kernel"].permute(3, 2, 0, 1), 1, f"conv_pw_{i}")
    return y.mean((2, 3)) @ w["conv_preds/kernel"][0, 0] + w["conv_preds/bias"]


def resnet50(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """He et al. 2015, table 1, with the stride in the 3x3 convolutions, on normalised images in NHWC."""

    def layer(x: torch.Tensor, conv: str, bn: str, stride: int) -> torch.Tensor:
        y = F.conv2d(x, w[f"{conv}.weight"], stride=stride, padding=w[f"{conv}.weight"].shape[-1] // 2)
        return F.batch_norm(y, *(w[f"{bn}.{v}"] for v in ("running_mean", "running_var", "weight", "bias")))

    y = F.max_pool2d(F.relu(layer(x.permute(0, 3, 1, 2), "conv1", "bn1", 2)), 3, 2, 1)
    for stage, depth in enumerate((3, 4, 6, 3), 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            z = F.relu(layer(y, f"{name}.conv1", f"{name}.bn1", 1))
            z = F.relu(layer(z, f"{name}.conv2", f"{name}.bn2", stride))
            z = layer(z, f"{name}.conv3", f"{name}.bn3", 1)
            y = F.relu(z + (y if block else layer(y, f"{name}.downsample.0", f"{name}.downsample.1", stride)))
    return F.linear(y.mean((2, 3)), w["fc.weight"], w["fc.bias"])


def bn(name: str, n: int) -> Shapes:
    return {f"{name}/{v}": (n,) for v in ("gamma", "beta", "moving_mean", "moving_variance")}


def keras_shapes(width: float, classes: int) -> Shapes:
    """Names and shapes of MobileNetV1's weights."""
    n = int(32 * width)
    out = {"conv1/kernel": (3, 3, 3, n), **bn("conv1_bn", n)}
    for i, features in enumerate((64, 128, 128, 256, 256, *[512] * 6, 1024, 1024), 1):
        out |= {f"conv_dw_{i}/depthwise_kernel": (3, 3, n, 1), **bn(f"conv_dw_{i}_bn", n)}
        m = int(features * width)
        out |= {f"conv_pw_{i}/kernel": (1, 1, n, m), **bn(f"conv_pw_{i}_bn", m)}
        n = m
    return out | {"conv_preds/kernel": (1, 1, n, classes), "conv_preds/bias": (classes,)}


def torchvision_shapes(classes: int) -> Shapes:
    """Names and shapes of ResNet-50's weights."""
    out: Shapes = {}

    def layer(conv: str, bn: str, n: int, m: int, size: int) -> None:
        out[f"{conv}.weight"] = (m, n, size, size)
        out.update({f"{bn}.{v}": (m,) for v in ("weight", "bias", "running_mean", "running_var")})
        out[f"{bn}.num_batches_tracked"] = ()

    layer("conv1", "bn1", 3, 64, 7)
    n = 64
    for stage, (depth, m) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            layer(f"{name}.conv1", f"{name}.bn1", n, m, 1)
            layer(f"{name}.conv2", f"{name}.bn2", m, m, 3)
            layer(f"{name}.conv3", f"{name}.bn3", m, 4 * m, 1)
            if block == 0:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", n, 4 * m, 1)
            n = 4 * m
    return out | {"fc.weight": (classes, n), "fc.bias": (classes,)}


def random_weights(shapes: Shapes) -> Weights:
    """Random tensors in the range of a trained network's."""
    rng = np.random.default_rng(0)

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if not shape:
            return np.int64(7)  # type: ignore[return-value]
        if name.endswith("bn3.weight"):  # else the sums of 16 blocks grow without bounds
            return np.full(shape, 0.2, np.float32)
        if len(shape) == 1:  # scales and variances around 1, shifts and means around 0
            low = 0.5 if name.endswith(("gamma", "variance", ".weight", "_var")) else -0.5
            return rng.uniform(low, low + 1, shape).astype(np.float32)
        depthwise = name.endswith("depthwise_kernel")
        inputs = np.prod(shape) / (shape[2] if depthwise else shape[0 if name.endswith("weight") else -1])
        return (rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)

    return {name: one(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def keras() -> Weights:
    """Weights of mobilenet_v1_025 for 7 classes."""
    return random_weights(keras_shapes(0.25, 7))


@pytest.fixture(scope="module")
def template() -> Model:
    return models.from_recipe(models.recipe("mobilenet_v1_025", num_classes=7, input_shape=(64, 64, 3)), abstract=True)


def test_mobilenet_and_its_gradients_equal_pytorch(keras: Weights, template: Model) -> None:
    model = convert.from_keras(keras, template)
    rng = np.random.default_rng(1)
    x, weight = rng.random((3, 64, 64, 3), np.float32), rng.standard_normal((3, 7)).astype(np.float32)
    theirs = {name: tensor.requires_grad_() for name, tensor in on_torch(keras).items() if "moving" not in name}
    expected = mobilenet({**on_torch(keras), **theirs}, torch.from_numpy(x))
    (expected * torch.from_numpy(weight)).sum().backward()

    @jax.jit
    def ours(params: dict, x: jax.Array) -> tuple:
        logits, back = jax.vjp(lambda p: model.replace(params=p)(x), params)
        return logits, back(weight)[0]

    logits, grads = ours(model.params, x)
    expected = expected.detach().numpy()
    assert expected.std(axis=0).min() > 0.01  # the images are told apart
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    named = {name: theirs[name].grad.numpy() if name in theirs else value for name, value in keras.items()}
    by_torch = _tree.flatten_paths(convert.from_keras(named, template).params)
    for path, mine in _tree.flatten_paths(grads).items():
        other = by_torch[path]
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4 * float(jnp.abs(other).max()), err_msg=path)


def test_resnet50_equals_pytorch() -> None:
    weights = random_weights(torchvision_shapes(7))
    recipe = models.recipe("resnet50", num_classes=7, input_shape=(32, 32, 3))
    model = convert.from_torch(weights, models.from_recipe(recipe, abstract=True))
    x = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    normal = (x - np.float32(recipe.mean)) / np.float32(recipe.std)
    expected = resnet50(on_torch({k: v for k, v in weights.items() if v.shape}), torch.from_numpy(normal)).numpy()
    assert expected.std(axis=0).min() > 0.01
    np.testing.assert_allclose(jax.jit(Model.__call__)(model, x), expected, rtol=0, atol=1e-4)


def test_names_with_the_suffix_of_tensorflow_variables(keras: Weights, template: Model) -> None:
    one = convert.from_keras(keras, template)
    two = convert.from_named({f"{name}:0": value for name, value in keras.items()}, template)
    assert _tree.digest(one.params) == _tree.digest(two.params)
    assert one.params["conv_dw_3"]["kernel"][2, 0, 0, 5] == keras["conv_dw_3/depthwise_kernel"][2, 0, 5, 0]
    assert one.model_state["batch_stats"]["conv1_bn"]["var"][4] == keras["conv1_bn/moving_variance"][4]


def test_a_plain_convolution_of_one_channel_is_no_depthwise_one(keras: Weights) -> None:
    recipe = models.recipe("mobilenet_v1_025", num_classes=7, input_shape=(32, 32, 1), mean=(0.5,), std=(0.5,))
    grey = keras | {"conv1/kernel": keras["conv1/kernel"][:, :, :1]}
    model = convert.from_keras(grey, models.from_recipe(recipe, abstract=True))
    np.testing.assert_array_equal(model.params["conv1"]["kernel"], grey["conv1/kernel"])


NEEDED = r"the weights do not fit mobilenet_v1_025: "


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "conv_dw_2/depthwise_kernel",
            np.zeros((3, 3, 8, 1), np.float32),
            NEEDED + r"conv_dw_2/depthwise_kernel has shape \(3, 3, 8, 1\), the network needs \(3, 3, 16, 1\)$",
        ),
        (
            "conv_preds/kernel",
            np.zeros((1, 1, 256, 9), np.float32),
            r"the weights are for 9 classes, mobilenet_v1_025 is built for 7 \(conv_preds/kernel has shape",
        ),
        ("conv_preds/bias", np.zeros(9, np.float32), "the weights are for 9 classes, mobilenet_v1_025 is built for 7"),
        ("conv_preds/bias", None, NEEDED + r"missing conv_preds/bias of shape \(7,\)$"),
        ("conv_dw_1/depthwise_kernel", None, NEEDED + r"missing conv_dw_1/depthwise_kernel of shape \(3, 3, 8, 1\)$"),
        ("conv1_bn/beta", None, NEEDED + r"missing conv1_bn/beta of shape \(8,\)$"),
        ("dense/kernel", np.zeros((3, 3), np.float32), NEEDED + r"unexpected dense/kernel of shape \(3, 3\)$"),
        ("conv1_bn/gamma", np.full(8, np.nan, np.float32), "tensor 'conv1_bn/gamma' has 8 NaN or infinite values of 8"),
        ("conv1_bn/gamma", np.zeros(8, np.int32), "tensor 'conv1_bn/gamma' must be floating point; got int32"),
    ],
)
def test_keras_weights_that_do_not_fit(
    keras: Weights, template: Model, name: str, value: np.ndarray | None, message: str
) -> None:
    changed = {k: v for k, v in (keras | {name: value}).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        convert.from_named(changed, template)


def test_damaged_files_of_keras_weights(tmp_path: Path, keras: Weights) -> None:
    path, recipe = tmp_path / "net.npz", models.recipe("mobilenet_v1_025", num_classes=7)
    np.savez(path, **keras)
    convert.load_weights(path, recipe, models.from_recipe)
    whole = path.read_bytes()
    again = "download or save it anew"
    for kept in (0, 100, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:kept])
        said = rf"no complete npz file of plain arrays \([^\n]*\): {again}" if kept else f"empty: {again}"
        with pytest.raises(ValueError, match=rf"^{path} is {said}$"):
            convert.load_weights(path, recipe, models.from_recipe)
    np.savez(path, **keras | {"conv1/kernel": np.array([{}], object)})
    with pytest.raises(
        ValueError, match=r"plain arrays \(conv1/kernel.npy holds Python objects, a pickle, which is not"
    ):
        convert.load_weights(path, recipe, models.from_recipe)
    np.savez(path, **keras | {"conv1/kernel": keras["conv1/kernel"][:1]})
    with pytest.raises(ValueError, match=rf"^{path}: the weights do not fit .*: conv1/kernel has shape \(1, 3, 3, 8\)"):
        convert.load_weights(path, recipe, models.from_recipe)


def photographs(shared: Path, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Every so manieth of the shared ImageNet images, (n, 224, 224, 3) uint8, and labels."""
    from PIL import Image

    folder = shared / "data" / "imagenet_sample"
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::every]
    images = [np.asarray(Image.open(folder / "images" / row["file"]).convert("RGB")) for row in rows]
    return np.stack(images), np.array([int(row["label"]) for row in rows])


def test_third_party_mobilenet_equals_its_pytorch_forward(shared: Path) -> None:
    with np.load(shared / WEIGHTS, allow_pickle=False) as file:
        weights = {name: file[name] for name in file.files}
    model = convert.load_weights(shared / WEIGHTS, models.recipe("mobilenet_v1_075"), models.from_recipe)
    x = photographs(shared, 250)[0].astype(np.float32) / 255
    expected = mobilenet(on_torch(weights), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(inference.logits(model, x), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_third_party_mobilenet_reaches_its_accuracy(shared: Path) -> None:
    model = convert.load_weights(shared / WEIGHTS, models.recipe("mobilenet_v1_075"), models.from_recipe)
    x, y = photographs(shared, 1)
    assert (inference.logits(model, x.astype(np.float32) / 255).argmax(1) == y).mean() == pytest.approx(0.839)


def test_command_line_takes_keras_weights(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture, keras: Weights
) -> None:
    x, y = photographs(shared, 50)
    np.savez(tmp_path / "photographs.npz", x=x, y=y, split=np.where(np.arange(len(y)) < 1, "train", "test"))
    data = ["--data", f"npz:{tmp_path / 'photographs.npz'}", "--json", "--quiet"]
    assert main(["evaluate", "--arch", "mobilenet_v1_075", "--weights", str(shared / WEIGHTS), *data]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 19
    assert result["accuracy"] >= 12 / 19
    # Weights for another number of classes say so themselves.
    np.savez(tmp_path / "seven.npz", **keras)
    assert main(["evaluate", "--arch", "mobilenet_v1_025", "--weights", str(tmp_path / "seven.npz"), *data]) == 2
    assert "has labels up to 950, mobilenet_v1_025 has only 7 classes" in capsys.readouterr().err

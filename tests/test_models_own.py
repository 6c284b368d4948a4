"""Networks of the user's own, Linen and NNX, from Python and from the command line."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxunlearn import _tree, checkpoint, convert, models
from jaxunlearn._types import Recipe
from jaxunlearn.cli.main import main
from tests import own_nets

LINEN, NNX = "tests.own_nets:Linen", "tests.own_nets:Nnx"
#: Functions that return networks with Dropout, GroupNorm and LayerNorm; the second with BatchNorm, too.
FACTORIES = ["tests.own_nets:linen", "tests.own_nets:nnx_model"]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "bring_your_own_model.md"
QUICK = ["--method", "neggrad", "--learning-rate", "0.02", "--eval-limit", "20", "--quiet"]
SIZE = dict(num_classes=10, input_shape=(8, 8, 1))


@pytest.mark.parametrize("arch", [LINEN, NNX])
def test_built_abstract_or_with_weights_it_is_the_same_network(arch: str, tmp_path: Path) -> None:
    recipe = models.recipe(arch, mean=(0.3,), std=(0.4,), **SIZE)
    assert recipe == Recipe.from_json(recipe.to_json())
    model = models.from_recipe(recipe, key=jax.random.key(0))
    empty = models.from_recipe(recipe, abstract=True)
    assert jax.tree.structure(model) == jax.tree.structure(empty)  # static parts, too: one compilation for both
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(empty))
    other = models.from_recipe(recipe, key=jax.random.key(1))
    assert _tree.digest(other.params) != _tree.digest(model.params)
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    checkpoint.save(tmp_path / "c", model)
    loaded = checkpoint.load(tmp_path / "c", models.from_recipe)
    np.testing.assert_array_equal(loaded(x), model(x))
    again = models.from_recipe(recipe, variables={"params": model.params, **model.model_state})
    np.testing.assert_array_equal(again(x), model(x))
    assert models.classifier(recipe) == model.spec.head


@pytest.mark.parametrize("arch", [LINEN, NNX])
def test_dropout_is_on_in_train_mode_only(arch: str) -> None:
    model = models.from_recipe(models.recipe(arch, **SIZE), key=jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))

    def logits(seed: int, train: bool) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply_fn(model.params, model.model_state, x, train=train, rngs=rngs)[0])

    assert not np.allclose(logits(0, True), logits(1, True), atol=1e-4)
    np.testing.assert_array_equal(logits(0, False), logits(1, False))


@pytest.mark.parametrize("arch", [LINEN, NNX])
def test_weights_by_pytorchs_names_there_and_back(arch: str, tmp_path: Path) -> None:
    recipe = models.recipe(arch, **SIZE)
    rng = np.random.default_rng(0)
    abstract = models.from_recipe(recipe, abstract=True)
    model = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape, np.float32)), abstract)
    done = convert.export(model, tmp_path / "own.safetensors")
    names = {*convert.read_state_dict(tmp_path / "own.safetensors")}
    last = "out.weight" if arch == LINEN else "layers.2.weight"
    assert last in names
    assert ("bn.running_var" in names, "bn.num_batches_tracked" in names) == ((arch == NNX,) * 2)
    assert done.difference == 0
    again = convert.load_weights(tmp_path / "own.safetensors", recipe, models.from_recipe)
    assert _tree.model_digest(again) == _tree.model_digest(model)


def test_a_module_of_ones_own_is_not_taken_for_a_wrapper(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arch, file, out = "tests.own_nets:Inside", tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    recipe = models.recipe(arch, num_classes=12, input_shape=(8, 8, 1))
    model = models.from_recipe(recipe, key=jax.random.key(0))
    convert.export(model, file)
    assert all(name.startswith("net.") for name in convert.files.read_raw(file).tensors)
    tensors = convert.files.read_raw(file).tensors
    for before in ("", "net.", "module.net."):  # saved alone, as it is, and inside a wrapper
        named = {before + name.removeprefix("net."): value for name, value in tensors.items()}
        safetensors.numpy.save_file(named, file)
        assert _tree.model_digest(convert.load_weights(file, recipe, models.from_recipe)) == _tree.model_digest(model)
        assert _tree.model_digest(convert.from_torch(named, model)) == _tree.model_digest(model)
        assert convert.export(model, out, like=file, overwrite=True).changed == ()
        assert {*convert.files.read_raw(out).tensors} == {*named}
        argv = ["evaluate", "--model", arch, "--weights", str(file), "--data", "digits", "--json", "--quiet"]
        assert main(argv) == 0
        assert len(json.loads(capsys.readouterr().out)["by_class"]) == 12  # as the weights say


@pytest.mark.parametrize(
    ("arch", "more", "message"),
    [
        ("tests.own_nets:linen", {}, "'tests.own_nets:linen' is a function, which is called only where you name it"),
        ("os:system", {"command": "false"}, "'os:system' is not a class of Linen modules or NNX modules"),
        ("tests.own_nets:Broken", {}, r"tests.own_nets:Broken cannot be built for \(8, 8, 1\): no such width$"),
        ("tests.own_nets:Demanding", {}, "the recipe of tests.own_nets:Demanding does not fit it: .*depth"),
        (NNX, {"depth": 3}, "the recipe of tests.own_nets:Nnx does not fit it: .*depth"),
        (LINEN, {"depth": 3}, "the recipe of tests.own_nets:Linen does not fit it: .*depth"),
        ("tests.no_such_file:Net", {}, "cannot import the network 'tests.no_such_file:Net'"),
        ("tests.own_nets:Line", {}, "tests.own_nets has no 'Line'; did you mean Linen?"),
        ("tests.own_nets:", {}, "tests.own_nets has no ''$"),
        ("tests.own_nets:WIDTH", {}, "'tests.own_nets:WIDTH' is a int: name a class"),
        ("tests.own_nets:ready", {}, "'tests.own_nets:ready' is a Linen, built already: name a class"),
    ],
)
def test_what_is_refused(arch: str, more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.from_recipe(models.recipe(arch, **SIZE, **more), abstract=True)


@pytest.mark.parametrize(
    ("arch", "more", "message"),
    [
        ("tests.own_nets:demanding", {}, "demanding cannot be called with num_classes, input_shape, rngs: .*'depth'"),
        ("tests.own_nets:linen", {"depth": 3}, "linen cannot be called with num_classes, .*, depth: .*'depth'"),
        ("tests.own_nets:raising", {}, r"tests.own_nets:raising cannot be built for \(8, 8, 1\): no such width$"),
        ("tests.own_nets:ending", {}, r"tests.own_nets:ending cannot be built for \(8, 8, 1\): 3"),
        ("tests.own_nets:text", {}, "tests.own_nets:text returned a str, not a Linen module or an NNX module"),
        ("os:system", {}, "os:system cannot be called with num_classes, input_shape, rngs: .*'command'"),
        ("collections:Counter", {}, "'collections:Counter' is not a class of Linen modules or NNX modules"),
    ],
)
def test_what_is_refused_though_it_is_named(arch: str, more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.from_recipe(models.recipe(arch, **SIZE, **more), abstract=True, named=arch)


def test_a_strangers_recipe_does_not_import_what_acts_when_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(models.own.importlib, "import_module", imported)
    for arch in ("antigravity:Net", "unittest.__main__:Net", "tests.__main__:Net"):
        with pytest.raises(ValueError, match=f"'{arch}' is not a class of Linen modules or NNX modules"):
            models.from_recipe(models.recipe(arch, **SIZE), abstract=True)


@pytest.mark.parametrize("arch", [*FACTORIES, "tests.own_nets:seeded", "tests.own_nets:listed"])
def test_what_a_function_returns_is_a_network_as_that_of_a_class(arch: str, tmp_path: Path) -> None:
    recipe = models.recipe(arch, mean=(0.3,), std=(0.4,), **SIZE)
    build = functools.partial(models.from_recipe, named=arch)
    model, empty = build(recipe, key=jax.random.key(0)), build(recipe, abstract=True)
    assert jax.tree.structure(model) == jax.tree.structure(empty)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(empty))
    other = build(recipe, key=jax.random.key(1))
    assert (_tree.digest(other.params) == _tree.digest(model.params)) == arch.endswith("seeded")
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    checkpoint.save(tmp_path / "c", model)
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "c", build)(x), model(x))
    again = build(recipe, variables={"params": model.params, **model.model_state})
    np.testing.assert_array_equal(again(x), model(x))
    assert models.classifier(recipe, named=arch) == model.spec.head
    if arch in FACTORIES:
        like = models.from_recipe(models.recipe(LINEN if "linen" in arch else NNX, **SIZE), key=jax.random.key(0))
        np.testing.assert_allclose(model((x * 0.4) + 0.3), like(x), rtol=0, atol=1e-5)
        rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 1)]
        a, b = (model.apply_fn(model.params, model.model_state, x, train=True, rngs=keys)[0] for keys in rngs)
        assert not np.allclose(a, b, atol=1e-4)
    with pytest.raises(ValueError, match=f"c: '{arch}' is a function, .*: --model {arch} "):
        checkpoint.load(tmp_path / "c", models.from_recipe)


def test_a_function_is_called_with_what_more_it_takes() -> None:
    arch = FACTORIES[1]
    recipe = models.recipe(arch, width=3, **SIZE)
    assert models.from_recipe(recipe, named=arch, abstract=True).spec.recipe == recipe


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfway.py").write_text("raise RuntimeError('not yet')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot import the network 'halfway:Net': not yet"):
        models.from_recipe(models.recipe("halfway:Net", **SIZE), abstract=True)


def test_a_class_in_the_folder_of_the_command_is_found(tmp_path: Path) -> None:
    """As a process of its own: only `python -m` would put that folder on the path by itself."""
    (tmp_path / "my_nets.py").write_text("from tests.own_nets import Linen as Mine\n")
    command = Path(sys.executable).with_name("jaxunlearn")
    argv = [command, "train", "--arch", "my_nets:Mine", "--data", "digits", "--epochs", "1", "--out", "run", "--quiet"]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(argv, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.describe(tmp_path / "run" / "checkpoint")["recipe"].arch == "my_nets:Mine"


def test_variables_of_another_network_are_refused() -> None:
    recipe = models.recipe(NNX, **SIZE)
    other = models.from_recipe(models.recipe(NNX, num_classes=3, input_shape=(8, 8, 1)), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"the variables are not those of tests\.own_nets:Nnx"):
        models.from_recipe(recipe, variables={"params": other.params, **other.model_state})


@pytest.mark.parametrize("arch", FACTORIES)
def test_commands_call_a_function_only_where_it_is_named(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = " ".join(QUICK)
    needs = {
        f"unlearn --weights t --data digits --forget 2,57 --out r {quick}": (0, 3),
        f"unlearn --from r --forget 151 --out s {quick}": (0, 3),
        "export --run r --out w.safetensors": (0,),
        "evaluate --run r": (0,),
        "evaluate --weights t --data digits": (0,),
        "train --weights t --data digits --epochs 1 --out u": (0,),
    }
    if arch == FACTORIES[0]:  # of NNX networks it is not known what a layer gets
        needs["moments --weights t --data digits --out m.safetensors"] = (0,)
    assert main(f"train --model {arch} --data digits --epochs 2 --learning-rate 0.05 --out t --quiet".split()) == 0
    capsys.readouterr()
    for command, done in needs.items():
        before, own_nets.called[:] = sorted(Path().rglob("*")), []
        assert main(command.split()) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert f"'{arch}' is a function, which is called only where you name it: --model {arch}" in said.err
        assert not own_nets.called
        assert sorted(Path().rglob("*")) == before
        assert main([*command.split(), "--model", arch]) in done
        assert own_nets.called
        capsys.readouterr()
    assert main(f"evaluate --model {arch} --weights w.safetensors --data digits".split()) == 0
    assert main(f"export --run r --model {LINEN} --out x.safetensors".split()) == 2
    said = capsys.readouterr().err
    assert f"--arch is {LINEN}, but " in said
    assert f"r/checkpoint holds a {arch}\n" in said


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and, up to the last of them, the Python between them, in order; training and forgetting in short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    short = {"train": ["--epochs", "2"], "unlearn": QUICK}
    space: dict[str, object] = {"__name__": "page"}
    ran = []
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    while any(kind == "bash" for kind, _ in blocks):
        kind, text = blocks.pop(0)
        if kind == "python":
            exec(compile(text, str(PAGE), "exec", dont_inherit=True), space)
            continue
        for command in text.replace("\\\n", " ").splitlines():
            _, *argv = shlex.split(command)
            assert main([*argv, *short.get(argv[0], [])]) in (0, 3 if argv[0] == "unlearn" else 0), command
            ran.append(argv[0])
    assert ran == ["train", "unlearn", "export", "evaluate", "unlearn", "export", "evaluate"]
    assert len(Path("small_without.msgpack").read_bytes()) == len(Path("small.msgpack").read_bytes())


def test_both_spellings_are_one_flag(capsys: pytest.CaptureFixture) -> None:
    for name in ("--arch", "--model"):
        assert main(["evaluate", name, "cifar_resnet21", "--weights", "w.npz", "--data", "digits"]) == 2
        assert "unknown network 'cifar_resnet21'" in capsys.readouterr().err
    assert main(["evaluate", "--model"]) == 2
    assert "--arch needs a value" in capsys.readouterr().err


@pytest.mark.parametrize("arch", [LINEN, NNX])
def test_train_unlearn_evaluate_export(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fit = ["--data", "digits", "--epochs", "12", "--learning-rate", "0.05", "--quiet"]
    assert main(["train", "--arch", arch, *fit, "--out", str(tmp_path / "t")]) == 0
    fast = ["--method", "neggrad", "--learning-rate", "0.02", "--eval-limit", "20", "--quiet"]
    argv = ["unlearn", "--weights", str(tmp_path / "t"), "--data", "digits", "--forget", "2,57", *fast]
    assert main([*argv, "--out", str(tmp_path / "r")]) == 0
    assert main(["export", "--run", str(tmp_path / "r"), "--out", str(tmp_path / "w.safetensors"), "--quiet"]) == 0
    capsys.readouterr()
    measure = ["evaluate", "--data", "digits", "--json", "--quiet"]
    assert main([*measure, "--run", str(tmp_path / "r")]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["accuracy"] > 0.3
    file = ["--arch", arch, "--weights", str(tmp_path / "w.safetensors")]
    assert main([*measure, *file]) == 0
    assert json.loads(capsys.readouterr().out) == run
    published = [
        "--method",
        "adv-imp",
        "--preset",
        "published",
        "--draws",
        "1",
        "--attack-steps",
        "2",
        "--max-passes",
        "1",
    ]
    argv = ["unlearn", "--weights", str(tmp_path / "t"), "--data", "digits", "--forget", "2,57", "--eval-limit", "20"]
    assert main([*argv, *published, "--quiet", "--out", str(tmp_path / "p")]) in (0, 3)  # dropout on, in its train mode
    capsys.readouterr()
    assert main([*measure, *file, "--num-classes", "10", "--input-shape", "8,8,1"]) == 0
    assert json.loads(capsys.readouterr().out) == run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-classes", "0"], "--num-classes must be a whole number of at least 1; got '0'"),
        (["--input-shape", "8,8"], "--input-shape must be height,width,channels such as 32,32,3; got '8,8'"),
        (["--input-shape", "0,8,1"], "--input-shape must be height,width,channels"),
        (["--num-classes", "7"], "w.npz: the weights are for 10 classes, tests.own_nets:Linen is built for 7"),
    ],
)
def test_flags_of_size(tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str) -> None:
    abstract = models.from_recipe(models.recipe(LINEN, **SIZE), abstract=True)
    model = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), abstract)
    np.savez(tmp_path / "w.npz", **convert.to_torch(model))
    argv = ["evaluate", "--arch", LINEN, "--weights", str(tmp_path / "w.npz"), "--data", "digits", *flags]
    assert main(argv) == 2
    assert message in capsys.readouterr().err

"""Every row of the table of mistakes about weights; and any bytes at all: a model or an error of one printable line."""

from __future__ import annotations

import functools
import io
import json
import re
import shlex
import shutil
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings

from jaxunlearn import _files, _tree, checkpoint, convert, models, report
from jaxunlearn._types import Model
from jaxunlearn.cli.main import main
from jaxunlearn.convert import huggingface
from tests.data_mistakes import rows
from tests.digits_net import ARCH
from tests.test_data_errors import PAGE, pattern
from tests.weights_mistakes import HF, MISTAKES, Code, as_torch, asked, changed, fresh, lying_npz, pipe, torch_file

RECIPE = models.recipe(ARCH, num_classes=10, input_shape=(8, 8, 1))


@functools.cache
def template(arch: str = ARCH) -> Model:
    """Return the network without weights, traced once."""
    return models.from_recipe(models.recipe(arch, num_classes=10, input_shape=(8, 8, 1)), abstract=True)


def load(path: Path) -> Model:
    """Return the network with the weights of a file."""
    return convert.load_weights(path, RECIPE, lambda recipe, abstract: template())


def said_of(argv: str, capsys: pytest.CaptureFixture) -> str:
    """Return the one line that is said of a command that is refused."""
    before = sorted(Path().rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as PyTorch's on what it reads
        assert main(shlex.split(argv)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err[:-1].isprintable(), said.err
    assert sorted(Path().rglob("*")) == before  # nothing written, no code of a pickle run
    return said.err


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").symlink_to(net)
    mistake.make(monkeypatch)
    expected = pattern(mistake.said).replace("HERE", re.escape(str(tmp_path)))
    said = said_of(mistake.asked, capsys)
    assert re.fullmatch(f"jaxunlearn: error: {expected}\n", said), said


def test_the_page_has_every_mistake():
    assert "\n".join(rows(MISTAKES)) in PAGE.read_text(encoding="utf-8")
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)


COMMANDS = (
    asked("w.pth"),
    f"evaluate --arch {ARCH} --weights w.pth --data digits",
    f"compare --arch {ARCH} --weights w.pth --data digits --forget 2 --methods neggrad --out out",
    f"train --arch {ARCH} --weights w.pth --data digits --out out",
    f"train --arch {ARCH} --weights w.pth --data digits --out out --resume",
    f"moments --arch {ARCH} --weights w.pth --data digits --out m.safetensors",
    "export --weights net --like w.pth --out out.npz",
    f"verify w.pth --arch {ARCH} --weights net",
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[::6]))
@pytest.mark.parametrize("make", [pipe("w.pth"), torch_file("w.pth", Code)], ids=["pipe", "code"])
def test_every_command_answers(command, make, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").symlink_to(net)
    make()
    assert "w.pth" in said_of(command, capsys)


# --- what is read all the same -----------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *((".npz", dtype) for dtype in (np.float16, np.float64, np.longdouble, ">f4")),
        *((kind, dtype) for kind in (".pth", ".safetensors") for dtype in (np.float16, np.float64, ml_dtypes.bfloat16)),
    ],
    ids=str,
)
def test_floats_of_other_widths_are_read(tmp_path, suffix, dtype):
    import safetensors.numpy
    import torch

    tensors = {name: value.astype(dtype) for name, value in fresh().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, **tensors)
    elif suffix == ".pth":
        narrow = getattr(torch, np.dtype(dtype).name)
        torch.save({name: tensor.to(narrow) for name, tensor in as_torch(fresh()).items()}, path)
    else:
        safetensors.numpy.save_file(tensors, path)
    kernel = load(path).params["linear"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors["linear.weight"].astype(np.float32).T)


def test_files_of_data_are_read_whatever_their_name_says(tmp_path):
    import safetensors.numpy

    safetensors.numpy.save_file(fresh(), tmp_path / "a.pth")
    with (tmp_path / "b.safetensors").open("wb") as file:
        np.savez(file, **fresh())
    shutil.copy(tmp_path / "a.pth", tmp_path / "blob")  # as the caches of hubs name them
    found = [_tree.model_digest(load(tmp_path / name)) for name in ("a.pth", "b.safetensors", "blob")]
    assert len(set(found)) == 1


def test_a_checkpoint_with_an_optimiser_around_the_weights_is_read(tmp_path):
    import torch

    content = {"state_dict": as_torch(fresh()), "optimizer": {"state": {}, "lr": 0.1}, "epoch": 3, "best": 0.9}
    torch.save(content, tmp_path / "w.tar")
    assert load(tmp_path / "w.tar").params["linear"]["kernel"].shape == (256, 10)


def test_a_folder_of_transformers_with_a_pickle_alone_is_read(tmp_path):
    import torch

    (tmp_path / "config.json").write_text(json.dumps(HF))
    recipe = huggingface.read_recipe(tmp_path)
    tensors = convert.to_torch(models.from_recipe(recipe, key=jax.random.key(0)))
    torch.save(as_torch(tensors), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").symlink_to("gone")
    model = convert.load_weights(tmp_path, recipe, models.from_recipe)
    assert model.spec.num_classes == 10


# --- what must not fill the memory, or go on for ever ------------------------


@pytest.mark.parametrize(("size", "shape"), [(64, "(999999999,)"), (2**29, "(134217728,)")])
def test_a_file_does_not_fill_the_memory(tmp_path, monkeypatch, size, shape):
    monkeypatch.chdir(tmp_path)
    lying_npz(size, shape)()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is no complete npz file"):
            load(Path("w.npz"))
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_name_of_a_million_wrappers_is_read_at_once():
    name = "module." * 200_000 + "weight"
    assert len(convert.fit.strip_prefix({name: 1}).popitem()[0]) > 10**6


def results(**change: Any) -> dict[str, Any]:
    """Return what a run's results.json must hold, changed."""
    good = {
        "tool": "jaxunlearn", "schema_version": 1, "method": "neggrad", "goal": "misclassify", "seed": 0,
        "before": dict.fromkeys(("forget", "retain", "test")), "after": dict.fromkeys(("forget", "retain", "test")),
        "instances": [], "stop_reason": "forgotten", "steps": 1, "seconds": {}, "config": {}, "versions": {},
        "extras": {}, "data": "digits", "earlier": [], "origin": None,
    }  # fmt: skip
    return good | change


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "w.pth"},
        {"origin": {"weights": 3, "digest": ""}},
        {"earlier": [3]},
        {"earlier": [{"id": 1}]},
        {"earlier": [{"id": 1, "label": 1, "run": "", "goal": "", "target": "x"}]},
        {"extras": {"reading": [1]}},
        {"data": 3},
        {"digests": []},
        {"seconds": {"all": "x"}},
        {"instances": [{"id": {}, "label": 1, "forgotten_at": 0}]},
    ],
    ids=str,
)
def test_results_of_a_run_with_a_field_of_the_wrong_kind(change, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/results.json").write_text(json.dumps(results()))
    report.read_run("run")
    Path("run/results.json").write_text(json.dumps(results(**change)))
    assert "results.json" in said_of("evaluate --run run", capsys)


def test_a_run_that_says_it_came_from_itself(net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    shutil.copytree(net, "run/checkpoint")
    content = results(origin={"weights": str(tmp_path / "run"), "digest": ""}, data=None)
    Path("run/results.json").write_text(json.dumps(content))
    assert main(["export", "--run", "run", "--out", "w.npz"]) == 0
    assert "does not say where its network came from" in capsys.readouterr().out
    assert main(["evaluate", "--run", "run"]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_an_original_with_a_name_that_steers_a_terminal(tmp_path):
    np.savez(tmp_path / "like.npz", **fresh(), **{"a\x1b[31m\nb": np.zeros(1, np.float32)})
    model = models.from_recipe(RECIPE, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"like.npz: the weights do not fit .*unexpected a\\x1b\[31m b") as caught:
        convert.export(model, tmp_path / "w.npz", like=tmp_path / "like.npz")
    assert str(caught.value).isprintable()


# --- anything at all ---------------------------------------------------------

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)
SUFFIXES = st.sampled_from([".pth", ".safetensors", ".npz", ".msgpack", ".bin", ""])


def attempt(read: Any, *arguments: Any) -> None:
    """Read something: it succeeds, or an OSError or ValueError tells of it in one printable line, nothing else."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        told = "nothing"
        try:
            read(*arguments)
        except (OSError, ValueError) as error:
            told = str(error)
    assert told
    assert told.isprintable(), told
    assert len(told) < 1000
    assert not [entry for entry in warned if not issubclass(entry.category, ResourceWarning)], warned[0]


@functools.cache
def good(kind: str) -> bytes:
    """Return a file of weights: few bytes of data, so that a change often meets what is around them."""
    import safetensors.numpy
    import torch

    stream = io.BytesIO()
    tensors = {"bn1.bias": fresh()["bn1.bias"], "bn1.weight": fresh()["bn1.weight"]}
    if kind == ".npz":
        np.savez(stream, **tensors)
    elif kind == ".msgpack":
        stream.write(serialization.msgpack_serialize({"params": {"bn1": {"bias": tensors["bn1.bias"]}}}))
    elif kind == ".safetensors":
        stream.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    else:
        torch.save(as_torch(tensors), stream, _use_new_zipfile_serialization=kind == ".pth")
    return stream.getvalue()


def damaged(content: bytes, changes: list[tuple[int, int]], keep: int) -> bytes:
    """Return bytes of which some are changed and the rest is cut off."""
    new = bytearray(content)
    for at, value in changes:
        new[at % len(new)] = value
    return bytes(new[: keep % len(new)]) if keep else bytes(new)


@FUZZ
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"\x80\4", b"\x81\xa6params\x81", b"\x93NUMPY", b"\1\0\0\0\0\0\0\0{"]),
    SUFFIXES,
)
def test_any_bytes_as_weights(tmp_path, content, start, suffix):
    (tmp_path / f"w{suffix}").write_bytes(start + content)
    attempt(load, tmp_path / f"w{suffix}")


@FUZZ
@given(
    st.sampled_from([".pth", ".th", ".safetensors", ".npz", ".msgpack"]), CHANGES, st.just(0) | st.integers(0, 10**5)
)
def test_any_bytes_changed_in_weights(tmp_path, kind, changes, keep):
    path = tmp_path / f"w{kind}"
    path.write_bytes(damaged(good(kind), changes, keep))
    attempt(load, path)


@FUZZ
@given(st.dictionaries(st.text(max_size=20) | st.sampled_from([*fresh()]), st.sampled_from([*fresh().values()])))
def test_any_names_of_tensors(tensors):
    attempt(convert.from_named, changed() | tensors, template())


@FUZZ
@given(CHANGES, CHANGES, st.just(0) | st.integers(0, 10**4))
def test_any_bytes_changed_in_a_folder_of_transformers(tmp_path, changes, others, keep):
    pre = {"size": {"shortest_edge": 8}, "crop_size": 8, "do_center_crop": True, "image_mean": [0.5], "image_std": [1]}
    config = HF | {"num_channels": 1, "image_size": 8, "id2label": {"0": "a", "1": "b"}}
    for name, value, ways in (("config", config, changes), ("preprocessor_config", pre, others)):
        (tmp_path / f"{name}.json").write_bytes(damaged(json.dumps(value).encode(), ways, keep))
    attempt(huggingface.read_recipe, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
FIELDS = ("arch", "kwargs", "mean", "std", "wrappers", "preprocess", "num_classes", "input_shape", "depths", "head")


@settings(FUZZ, max_examples=60)
@given(st.sampled_from(FIELDS), JSON)
def test_any_network_in_a_manifest(net, tmp_path, field, value):
    path = tmp_path / "edited"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    manifest = json.loads((net / "checkpoint.json").read_text())
    recipe = manifest["recipe"] | {"arch": "digits_cnn"}
    recipe = recipe | {field: value} if field in recipe else recipe | {"kwargs": recipe["kwargs"] | {field: value}}
    (path / "checkpoint.json").write_text(json.dumps(manifest | {"recipe": recipe}))
    attempt(checkpoint.load, path, models.from_recipe)
    attempt(checkpoint.describe, path)


@settings(FUZZ, max_examples=60)
@given(st.sampled_from(["recipe", "entries", "digest", "kind", "version", "meta", "format"]), JSON, CHANGES)
def test_anything_changed_in_a_manifest(net, tmp_path, field, value, changes):
    path = tmp_path / "edited"
    path.mkdir(exist_ok=True)
    whole = (net / "checkpoint.json").read_bytes()
    for content in (json.dumps(json.loads(whole) | {field: value}).encode(), damaged(whole, changes, 0)):
        (path / "checkpoint.json").write_bytes(content)
        attempt(checkpoint.load, path, lambda recipe, abstract: template())


@FUZZ
@given(st.text())
def test_any_text_is_made_printable(text):
    shown = _files.printable(text, most=40)
    assert shown.isprintable()
    assert len(shown) <= 40

"""Every mistake about weights, how it is made and what is said of it.

``python -m tests.weights_mistakes`` prints the table of docs/errors.md.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np
import pytest
from flax import serialization

from jaxunlearn import _files, _tree, checkpoint, convert, models
from tests import digits_net
from tests.data_mistakes import cut, file, link, rows
from tests.digits_net import ARCH
from tests.flag_mistakes import Mistake, files

LAYER = "linear.weight"
HF = {"model_type": "resnet", "num_labels": 10, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@functools.cache
def fresh() -> dict[str, np.ndarray]:
    """Return fresh weights of the network of the digits, by PyTorch's names."""
    return convert.to_torch(digits_net.fresh())


def changed(**change: Any) -> dict[str, np.ndarray]:
    """Return those with some replaced, or left out where None is given; ``__`` stands for a dot."""
    new = {name.replace("__", "."): value for name, value in change.items()}
    return {name: value for name, value in ({**fresh()} | new).items() if value is not None}


def torch_file(path: str, content: Callable[[], Any], **how: Any) -> Callable[[], None]:
    """Return what saves something as PyTorch does."""

    def write() -> None:
        import torch

        torch.save(content(), path, **how)

    return write


def as_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays as tensors of PyTorch."""
    import torch

    return {name: torch.tensor(value) for name, value in tensors.items()}


def torch_script() -> None:
    """Write a TorchScript archive."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save("w.pth")


def module() -> Any:
    """Return a module of PyTorch's."""
    import torch

    return torch.nn.Linear(2, 2)


def sparse() -> Any:
    """Return a state dict with a sparse tensor in it."""
    tensors = as_torch(fresh())
    return tensors | {LAYER: tensors[LAYER].to_sparse()}


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)


def safetensors(header: Any, size: int = 64, length: int | None = None) -> bytes:
    """Return a file of safetensors with a header of one's own and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(size)


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    """Return what a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def npz(**change: Any) -> Callable[[], None]:
    """Return what writes w.npz, of `changed`."""
    return lambda: np.savez("w.npz", **changed(**change))


def flax_names(**change: Any) -> dict[str, np.ndarray]:
    """Return fresh weights by Flax's own names, some replaced or left out; ``__`` stands for a slash."""
    model = digits_net.fresh()
    named = _tree.flatten_paths({"params": model.params, **model.model_state})
    new = {name.replace("__", "/"): value for name, value in change.items()}
    return {name: np.asarray(value) for name, value in (named | new).items() if value is not None}


def flax_npz(**change: Any) -> Callable[[], None]:
    """Return what writes w.npz, of `flax_names`."""
    return lambda: np.savez("w.npz", **flax_names(**change))


def flax_file(tree: Callable[[], Any]) -> Callable[[], None]:
    """Return what writes w.msgpack as Flax does."""
    return lambda: Path("w.msgpack").write_bytes(serialization.msgpack_serialize(tree())) and None


def lying_npz(size: int, shape: str) -> Callable[[], None]:
    """Return what writes an archive of so many zeros whose header tells of another shape."""

    def write() -> None:
        stream = io.BytesIO()
        np.save(stream, np.zeros(1, np.float32))
        header, before = stream.getvalue()[:-4], b"'shape': (1,), }"
        told = header.replace(before + b" " * 20, f"'shape': {shape}, }}".encode().ljust(len(before) + 20))
        with zipfile.ZipFile("w.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
            member.write(told)
            for _ in range(0, size, 2**20):
                member.write(bytes(min(size, 2**20)))

    return write


def zipped(name: str) -> Callable[[], None]:
    """Return what writes w.npz, an archive with one file that is no array."""

    def write() -> None:
        with zipfile.ZipFile("w.npz", "w") as archive:
            archive.writestr(name, "something else")

    return write


def pipe(path: str) -> Callable[[], None]:
    """Return what makes a pipe that nobody writes to."""
    return lambda: os.mkfifo(path)


def hugging_face(content: Any = HF, preprocessor: Any = None, weights: bool = True, **change: Any) -> Callable:
    """Return what writes a folder ``hf`` of Transformers."""

    def write() -> None:
        Path("hf").mkdir()
        config = content | change if isinstance(content, dict) else content
        Path("hf/config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if preprocessor is not None:
            Path("hf/preprocessor_config.json").write_text(json.dumps(preprocessor))
        if weights:
            Path("hf/model.safetensors").write_bytes(safetensors({"a": tensor("F32", [4], 0, 16)}, 16))

    return files(write)


def kept(edit: Callable[[dict[str, Any]], Any] = lambda manifest: None, *more: Callable[[], object]) -> Callable:
    """Return what writes a checkpoint ``kept``, its manifest edited."""

    def write() -> None:
        recipe = models.recipe("digits_cnn")
        checkpoint.save("kept", models.from_recipe(recipe, key=jax.random.key(0)))
        path = Path("kept/checkpoint.json")
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))

    return files(write, *more)


def both(make: Callable, *steps: Callable[[], object]) -> Callable:
    """Return what makes one thing and then others."""
    return files(lambda: make(None), *steps)


def argument(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what changes an argument of a manifest's network."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["kwargs"][name] = value

    return edit


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to open files, for root, too."""

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    npz()()
    monkeypatch.setattr(_files, "open", refuse, raising=False)


def ends() -> None:
    """Write a module that ends the program when it is imported."""
    Path("ends.py").write_text("raise SystemExit(0)")


def expanded() -> Any:
    """Return one number that is said to be ten thousand millions of them."""
    import torch

    return torch.ones(1).expand(100_000, 100_000)


def huge(path: str) -> Callable[[], None]:
    """Return what makes a file a gigabyte long that takes no place on the disk."""
    return lambda: os.truncate(path, 2**30)


def gone(path: str) -> Callable[[], None]:
    """Return what takes a file away."""
    return lambda: os.unlink(path)


def asked(path: str, arch: str = ARCH) -> str:
    """Return the request with a file of weights."""
    return f"unlearn --arch {arch} --weights {path} --data digits --forget 2 --out out"


FOLDER = "unlearn --data digits --forget 2 --out out --weights"
DIVIDES = {"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}
AGAIN = "download or save it anew"
SAVE = "save the network's state_dict() alone, best as .safetensors"

MISTAKES = (
    # what is there
    Mistake("no such file", asked("absent.npz"), "absent.npz: No such file or directory"),
    Mistake("an empty file", asked("w.pth"), f"w.pth is empty: {AGAIN}", files(file("w.pth", ""))),
    Mistake(
        "a file is a pipe", asked("w.pth"), "w.pth: a pipe, a socket or a device, not a file", files(pipe("w.pth"))
    ),
    Mistake(
        "a file is a device without an end",
        asked("w.pth"),
        "w.pth: a pipe, a socket or a device, not a file",
        files(link("w.pth", "/dev/zero")),
    ),
    Mistake(
        "a link leads to itself",
        asked("w.pth"),
        "w.pth: Too many levels of symbolic links",
        files(link("w.pth", "w.pth")),
    ),
    Mistake(
        "a pointer of Git LFS",
        asked("w.pth"),
        "w.pth is a pointer of Git LFS, not the file it stands for: run git lfs pull where it lies",
        files(file("w.pth", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n")),
    ),
    Mistake(
        "a web page",
        asked("w.safetensors"),
        "w.safetensors is a web page: download the file itself, not the page that shows it",
        files(file("w.safetensors", "\n<!DOCTYPE html><html>sign in")),
    ),
    Mistake(
        "a picture",
        asked("w.pth"),
        "w.pth is a JPEG picture: name the file of weights",
        files(file("w.pth", b"\xff\xd8\xff\xe0" + bytes(50))),
    ),
    Mistake(
        "a file of Keras",
        asked("w.npz"),
        "w.npz is an HDF5 file, as Keras writes: save its arrays by layer and variable as .npz",
        files(file("w.npz", b"\x89HDF\r\n\x1a\n" + bytes(50))),
    ),
    Mistake(
        "a compressed file",
        asked("w.pth"),
        "w.pth is compressed with gzip: unpack it",
        files(file("w.pth", b"\x1f\x8b\x08" + bytes(50))),
    ),
    Mistake(
        "an archive of something else",
        asked("w.npz"),
        "w.npz is a zip archive of something else (its first file is 'thesis.txt'), or damaged: unpack it, if"
        " it is whole",
        files(zipped("thesis.txt")),
    ),
    Mistake(
        "a single array",
        asked("w.npz"),
        "w.npz is a single array: save all arrays by name as .npz",
        files(lambda: np.save("w.npy", np.ones(3)), lambda: os.rename("w.npy", "w.npz")),
    ),
    Mistake(
        "noise",
        asked("w.npz"),
        "w.npz is no weights, or damaged (it begins with b'\\x07\\x01noise\\x07\\x01noi'): download or save it "
        "anew, as .safetensors, .npz or .pth",
        files(file("w.npz", b"\7\1noise" * 9)),
    ),
    Mistake(
        "a file of PyTorch with another name",
        asked("w.safetensors"),
        "w.safetensors is a PyTorch pickle, which its name does not say: rename it to w.pth if you know where"
        " it comes from, or save it as .safetensors",
        files(torch_file("w.safetensors", lambda: as_torch(fresh()))),
    ),
    Mistake("no permission to read a file", asked("w.npz"), "w.npz: Permission denied", refused),
    # what is damaged
    Mistake(
        "a file of PyTorch is cut short",
        asked("w.pth"),
        f"w.pth is no complete PyTorch file (...): {AGAIN}",
        files(torch_file("w.pth", lambda: as_torch(fresh())), cut("w.pth", 900)),
    ),
    Mistake(
        "an old file of PyTorch is cut short",
        asked("w.pth"),
        f"w.pth is no complete PyTorch file (...): {AGAIN}",
        files(torch_file("w.pth", lambda: as_torch(fresh()), _use_new_zipfile_serialization=False), cut("w.pth", 900)),
    ),
    Mistake(
        "a file of safetensors is cut short",
        asked("w.safetensors"),
        f"w.safetensors is no complete safetensors file (...): {AGAIN}",
        files(file("w.safetensors", safetensors({"a": tensor("F32", [16], 0, 64)}, 63))),
    ),
    Mistake(
        "a file of NumPy is cut short",
        asked("w.npz"),
        f"w.npz is no complete npz file of plain arrays (...): {AGAIN}",
        files(npz(), cut("w.npz", 900)),
    ),
    Mistake(
        "a header of safetensors that is longer than the file",
        asked("w.safetensors"),
        f"w.safetensors is no complete safetensors file (...): {AGAIN}",
        files(file("w.safetensors", safetensors({"a": tensor("F32", [16], 0, 64)}, length=10**15))),
    ),
    Mistake(
        "tensors that lie over each other",
        asked("w.safetensors"),
        f"w.safetensors is no complete safetensors file (...): {AGAIN}",
        files(file("w.safetensors", safetensors({"a": tensor("F32", [16], 0, 64), "b": tensor("F32", [8], 32, 64)}))),
    ),
    Mistake(
        "a shape that its bytes do not fill",
        asked("w.safetensors"),
        f"w.safetensors is no complete safetensors file (...): {AGAIN}",
        files(file("w.safetensors", safetensors({"a": tensor("F32", [10**9, 10**9], 0, 64)}))),
    ),
    Mistake(
        "a header that is no JSON",
        asked("w.safetensors"),
        f"w.safetensors is no complete safetensors file (...): {AGAIN}",
        files(file("w.safetensors", safetensors(b"{'a': 1}"))),
    ),
    Mistake(
        "an array of NumPy that its bytes do not fill",
        asked("w.npz"),
        f"w.npz is no complete npz file of plain arrays (a.npy says shape (99999999999,) and has 192 bytes): {AGAIN}",
        files(lying_npz(64, "(99999999999,)")),
    ),
    Mistake(
        "an archive that would fill the memory",
        asked("w.npz"),
        "w.npz is no complete npz file of plain arrays (it would fill 0.5 GiB, more than 20 times its own "
        f"size): {AGAIN}",
        files(lying_npz(2**29, "(134217728,)")),
    ),
    Mistake(
        "a tensor that would fill the memory",
        asked("w.pth"),
        "w.pth: it would fill 37.3 GiB, more than 20 times its own size",
        files(torch_file("w.pth", lambda: {"a": expanded()})),
    ),
    Mistake(
        "a file of Flax is cut short",
        asked("w.msgpack"),
        f"w.msgpack is no complete msgpack file of Flax (...): {AGAIN}",
        files(flax_file(lambda: {"params": flax_names()}), cut("w.msgpack", 900)),
    ),
    Mistake(
        "a length in a file of Flax that is longer than the file",
        asked("w.msgpack"),
        f"w.msgpack is no complete msgpack file of Flax (...): {AGAIN}",
        files(file("w.msgpack", b"\x81\xa6params\xc6\xff\xff\xff\xff")),
    ),
    Mistake(
        "an array of Flax that its bytes do not fill",
        asked("w.msgpack"),
        "w.msgpack is no complete msgpack file of Flax (cannot reshape array of size 3 into shape (100000,100000)): "
        f"{AGAIN}",
        files(flax_file(lambda: {"a": msgpack.ExtType(1, msgpack.packb(((10**5, 10**5), "float32", bytes(12))))})),
    ),
    # what is not weights alone
    Mistake(
        "a pickle with code, which is not run",
        asked("w.pth"),
        "w.pth is no plain state dict (asks for posix.system) and was not run; save the network's "
        "state_dict() alone, best as .safetensors",
        files(torch_file("w.pth", Code)),
    ),
    Mistake(
        "a bare pickle with code, which is not run",
        asked("w.bin"),
        "w.bin is no plain state dict (damaged, or with more than plain tensors in it) and was not run; save "
        "the network's state_dict() alone, best as .safetensors",
        files(lambda: Path("w.bin").write_bytes(pickle.dumps(Code()))),
    ),
    Mistake(
        "arrays of NumPy that are pickles",
        asked("w.npz"),
        "w.npz is no complete npz file of plain arrays (a.npy holds Python objects, a pickle, which is not "
        f"read): {AGAIN}",
        files(lambda: np.savez("w.npz", a=np.array([Code()], object))),
    ),
    Mistake(
        "a whole module",
        asked("w.pth"),
        "w.pth is no plain state dict (asks for torch.nn.modules.linear.Linear) and was not run; save the "
        "network's state_dict() alone, best as .safetensors",
        files(torch_file("w.pth", module)),
    ),
    Mistake(
        "a TorchScript archive",
        asked("w.pth"),
        "w.pth is a TorchScript archive, which holds code: in PyTorch, "
        "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') makes one of tensors alone",
        files(torch_script),
    ),
    Mistake(
        "what an optimiser kept",
        asked("w.pth"),
        "w.pth is no plain state dict: 'optimizer' is a dict, not a tensor; save the network's state_dict() "
        "alone, best as .safetensors",
        files(torch_file("w.pth", lambda: {"optimizer": {"lr": 0.1}, "epoch": 3})),
    ),
    Mistake(
        "a file of Flax with more than arrays in it",
        asked("w.msgpack"),
        "w.msgpack has more than arrays in it: 'epoch' is a int; save the network's variables alone, {'params': ..., "
        "'batch_stats': ...}",
        files(flax_file(lambda: {"epoch": 3})),
    ),
    Mistake(
        "a list of tensors",
        asked("w.pth"),
        f"w.pth is no state dict: it holds a list; {SAVE}",
        files(torch_file("w.pth", lambda: list(as_torch(fresh()).values()))),
    ),
    Mistake("no tensors at all", asked("w.pth"), f"w.pth holds no tensors; {SAVE}", files(torch_file("w.pth", dict))),
    # values
    Mistake(
        "not a number, or infinite",
        asked("w.npz"),
        "w.npz: tensor 'bn1.bias' has 16 NaN or infinite values of 16: take weights from before training diverged",
        files(npz(bn1__bias=np.full(16, np.nan, np.float32))),
    ),
    Mistake(
        "a number too large for the network",
        asked("w.npz"),
        "w.npz: tensor 'bn1.bias' has values up to 1e+300, too large for float32",
        files(npz(bn1__bias=np.full(16, 1e300))),
    ),
    Mistake(
        "whole numbers, as of a quantised network",
        asked("w.npz"),
        "w.npz: tensor 'linear.weight' must be floating point; got int8: save it as float32",
        files(npz(linear__weight=np.ones((10, 256), np.int8))),
    ),
    Mistake(
        "complex numbers",
        asked("w.npz"),
        "w.npz: tensor 'linear.weight' must be floating point; got complex64: save it as float32",
        files(npz(linear__weight=np.ones((10, 256), np.complex64))),
    ),
    Mistake(
        "floats of 8 bits",
        asked("w.safetensors"),
        "w.safetensors: tensor 'a' is of float8_e4m3fn, which is not read: save it as floats",
        files(file("w.safetensors", safetensors({"a": tensor("F8_E4M3", [64], 0, 64)}))),
    ),
    Mistake(
        "a sparse tensor",
        asked("w.pth"),
        "w.pth: tensor 'linear.weight' is no dense array (sparse_coo of float32): save it as a dense one of floats",
        files(torch_file("w.pth", sparse)),
    ),
    # fit
    Mistake(
        "no architecture",
        "unlearn --weights w.npz --data digits --forget 2 --out out",
        "--arch is missing: which network are the weights of w.npz for?",
        files(npz()),
    ),
    Mistake(
        "an unknown architecture",
        asked("w.npz", "cifar_resnet21"),
        "unknown network 'cifar_resnet21'; did you mean cifar_resnet32 or cifar_resnet20 or cifar_resnet14?",
        files(npz()),
    ),
    Mistake(
        "the wrong architecture",
        asked("w.npz", "digits_cnn"),
        "w.npz: the weights do not fit digits_cnn: linear.weight has shape (10, 256), the network needs (10, 32)",
        files(npz()),
    ),
    Mistake(
        "a class that cannot be imported",
        asked("w.npz", "nowhere:Tiny"),
        "cannot import the network 'nowhere:Tiny': No module named 'nowhere'",
        files(npz()),
    ),
    Mistake(
        "a class that is no network",
        asked("w.npz", "collections:Counter"),
        "'collections:Counter' is not a class of Linen modules or NNX modules",
        files(npz()),
    ),
    Mistake(
        "a name that is not in the module",
        asked("w.npz", "tests.digits_net:Tini"),
        "cannot import the network 'tests.digits_net:Tini': tests.digits_net has no 'Tini'; did you mean Tiny?",
        files(npz()),
    ),
    Mistake(
        "a name of something that makes no network",
        asked("w.npz", "tests.own_nets:WIDTH"),
        "'tests.own_nets:WIDTH' is a int: name a class of Linen or NNX modules, or a function that returns one",
        files(npz()),
    ),
    Mistake(
        "a network that is built already",
        asked("w.npz", "tests.own_nets:ready"),
        "'tests.own_nets:ready' is a Linen, built already: name a class of Linen or NNX modules, or a function that "
        "returns one",
        files(npz()),
    ),
    Mistake(
        "a function that takes other arguments",
        asked("w.npz", "tests.own_nets:demanding"),
        "tests.own_nets:demanding cannot be called with num_classes, input_shape, rngs: missing a required argument: "
        "'depth'",
        files(npz()),
    ),
    Mistake(
        "a function that fails",
        asked("w.npz", "tests.own_nets:raising"),
        "the network tests.own_nets:raising cannot be built for (8, 8, 1): no such width",
        files(npz()),
    ),
    Mistake(
        "a function that returns something else",
        asked("w.npz", "tests.own_nets:text"),
        "tests.own_nets:text returned a str, not a Linen module or an NNX module",
        files(npz()),
    ),
    Mistake(
        "a missing tensor",
        asked("w.npz"),
        "w.npz: the weights do not fit tests.digits_net:Tiny: missing bn1.bias of shape (16,)",
        files(npz(bn1__bias=None)),
    ),
    Mistake(
        "a tensor too many",
        asked("w.npz"),
        "w.npz: the weights do not fit tests.digits_net:Tiny: unexpected conv9.bias of shape (3,)",
        files(npz(conv9__bias=np.zeros(3, np.float32))),
    ),
    Mistake(
        "a tensor of another shape",
        asked("w.npz"),
        "w.npz: the weights do not fit tests.digits_net:Tiny: conv1.weight has shape (16, 3, 5, 5), the "
        "network needs (16, 1, 3, 3)",
        files(npz(conv1__weight=np.zeros((16, 3, 5, 5), np.float32))),
    ),
    Mistake(
        "a missing array by Flax's names",
        asked("w.npz"),
        "w.npz: the weights do not fit tests.digits_net:Tiny: missing batch_stats/bn1/mean of shape (16,)",
        files(flax_npz(batch_stats__bn1__mean=None)),
    ),
    Mistake(
        "an array too many by Flax's names",
        asked("w.npz"),
        "w.npz: the weights do not fit tests.digits_net:Tiny: unexpected params/conv9/bias of shape (3,)",
        files(flax_npz(params__conv9__bias=np.zeros(3, np.float32))),
    ),
    Mistake(
        "an array of another shape by Flax's names",
        asked("w.npz"),
        "w.npz: the weights do not fit tests.digits_net:Tiny: params/conv1/kernel has shape (5, 5, 1, 16), the network "
        "needs (3, 3, 1, 16)",
        files(flax_npz(params__conv1__kernel=np.zeros((5, 5, 1, 16), np.float32))),
    ),
    Mistake(
        "arrays by Flax's names of another network",
        asked("w.npz", "digits_cnn"),
        "w.npz: the weights do not fit digits_cnn: ...",
        files(flax_npz()),
    ),
    Mistake(
        "another number of classes",
        asked("w.npz"),
        "digits has labels up to 9, tests.digits_net:Tiny has only 7 classes (instance 9)",
        files(npz(linear__weight=np.zeros((7, 256), np.float32), linear__bias=np.zeros(7, np.float32))),
    ),
    Mistake(
        "what steers a terminal, in a tensor's name",
        asked("w.safetensors"),
        "w.safetensors: the weights do not fit tests.digits_net:Tiny: missing bn1.bias of shape (16,) (and 7 "
        "more); unexpected a\\x1b[31m \\u202e of shape (16,)",
        files(file("w.safetensors", safetensors({"a\x1b[31m\n\u202e": tensor("F32", [16], 0, 64)}))),
    ),
    Mistake(
        "a name of a million characters",
        asked("w.safetensors"),
        "w.safetensors: the weights do not fit tests.digits_net:Tiny: missing bn1.bias of shape (16,) (and 7 "
        "more); unexpected aaaaaa...",
        files(file("w.safetensors", safetensors({"a" * 10**6: tensor("F32", [16], 0, 64)}))),
    ),
    Mistake(
        "a number of classes that is not the network's",
        f"{asked('w.npz')} --num-classes 12",
        "w.npz: the weights are for 10 classes, tests.digits_net:Tiny is built for 12 (linear.bias has shape "
        "(10,), the network needs (12,))",
        files(npz()),
    ),
    Mistake(
        "a class whose file ends the program",
        asked("w.npz", "ends:Net"),
        "cannot import the network 'ends:Net': it ends the program",
        files(npz(), ends),
    ),
    # folders of Transformers
    Mistake("a config.json that is no JSON", f"{FOLDER} hf", "hf/config.json is no JSON: ...", hugging_face("{")),
    Mistake(
        "a config.json that is nested without end",
        f"{FOLDER} hf",
        "hf/config.json is nested too deeply",
        hugging_face("[" * 10**5),
    ),
    Mistake(
        "a network with code of its own",
        f"{FOLDER} hf",
        "hf/config.json has an auto_map: the network is code of its own, which is not run",
        hugging_face(auto_map={"AutoModel": "evil.Model"}),
    ),
    Mistake(
        "a network of another kind",
        f"{FOLDER} hf",
        "hf/config.json is of a 'bert'; those that fit are resnet, mobilenet_v2, vit",
        hugging_face(model_type="bert"),
    ),
    Mistake(
        "a network for something else",
        f"{FOLDER} hf",
        "hf/config.json is of a ResNetBackbone, not of a network for image classification",
        hugging_face(architectures=["ResNetBackbone"]),
    ),
    Mistake(
        "a network that nobody could hold",
        f"{FOLDER} hf",
        "hf/config.json: hidden_sizes may sum up to 1,000,000; got [1000000000, 16]",
        hugging_face(hidden_sizes=[10**9, 16]),
    ),
    Mistake(
        "a size below one",
        f"{FOLDER} hf",
        "hf/config.json: embedding_size must be from 1 to 1,000,000; got -3",
        hugging_face(embedding_size=-3),
    ),
    Mistake(
        "lists that do not go together",
        f"{FOLDER} hf",
        "hf/config.json: hidden_sizes and depths must have one length; got (8, 16) and (1,)",
        hugging_face(depths=[1]),
    ),
    Mistake(
        "a size of pictures that nobody could hold",
        f"{FOLDER} hf",
        "hf/preprocessor_config.json: size must be height and width, from 1 to 4096; got 1000000000",
        hugging_face(preprocessor={"image_processor_type": "ViTImageProcessor", "size": 10**9}),
    ),
    Mistake(
        "weights in several files",
        f"{FOLDER} hf",
        "the weights of hf are in several files: save the model anew in one, max_shard_size='99GB'",
        both(
            hugging_face(weights=False),
            file("hf/model.safetensors.index.json", '{"weight_map": {"a": "../../etc/passwd"}}'),
        ),
    ),
    Mistake(
        "no weights in the folder",
        f"{FOLDER} hf",
        "hf has a config.json, but no weights: model.safetensors or pytorch_model.bin is missing",
        hugging_face(weights=False),
    ),
    Mistake(
        "weights of another network in the folder",
        f"{FOLDER} hf",
        "hf: the weights do not fit hf_resnet: missing bn1.bias of shape (64,) (and 36 more); unexpected a of"
        " shape (4,)",
        hugging_face(),
    ),
    Mistake(
        "a config.json of a gigabyte",
        f"{FOLDER} hf",
        "hf/config.json has 1,073,741,824 bytes, more than the 134,217,728 that are read of such a file",
        both(hugging_face(), huge("hf/config.json")),
    ),
    Mistake(
        "a setting that is no number",
        f"{FOLDER} hf",
        "hf/config.json is no JSON: NaN is no number",
        hugging_face(json.dumps(HF | {"embedding_size": float("nan")})),
    ),
    Mistake(
        "a preprocessor_config.json with a deviation of 0",
        f"{FOLDER} hf",
        "hf: std must be above 0; got (1.0, 0.0, 1.0)",
        hugging_face(preprocessor=DIVIDES),
    ),
    # checkpoints and runs
    Mistake(
        "a folder that is no checkpoint",
        f"{FOLDER} thesis",
        "thesis is not a checkpoint: it has no checkpoint.json; name a file of weights or the folder of a run",
        files(file("thesis/a.txt", "a")),
    ),
    Mistake(
        "a manifest that is no JSON",
        f"{FOLDER} kept",
        "kept is not a checkpoint: its checkpoint.json cannot be read (kept/checkpoint.json is no JSON: ...)",
        both(kept(), file("kept/checkpoint.json", "{")),
    ),
    Mistake(
        "a manifest of a later version",
        f"{FOLDER} kept",
        "kept has checkpoint version 99; this library reads version 1",
        kept(lambda m: m.update(version=99)),
    ),
    Mistake(
        "a checkpoint of an unknown network",
        f"{FOLDER} kept",
        "kept: unknown network 'resnet19'; did you mean resnet18 or resnet110 or resnet56?",
        kept(lambda m: m["recipe"].update(arch="resnet19")),
    ),
    Mistake(
        "a checkpoint whose network was edited",
        f"{FOLDER} kept",
        "kept does not fit: params/linear/bias has ((10,), 'float32'), the target needs ((11,), 'float32')",
        kept(argument("num_classes", 11)),
    ),
    Mistake(
        "a checkpoint whose network a function makes that the command does not name",
        f"{FOLDER} kept",
        "kept: 'tests.own_nets:linen' is a function, which is called only where you name it: --model "
        "tests.own_nets:linen (in Python, models.from_recipe(..., named='tests.own_nets:linen'))",
        kept(lambda m: m["recipe"].update(arch="tests.own_nets:linen")),
    ),
    Mistake(
        "a checkpoint with images that nobody could hold",
        f"{FOLDER} kept",
        "kept: the recipe of digits_cnn: an input of (1000000, 1000000, 1) has more than 134,217,728 values",
        kept(argument("input_shape", [10**6, 10**6, 1])),
    ),
    Mistake(
        "a checkpoint inside something unknown",
        f"{FOLDER} kept",
        "kept: unknown wrapper 'evil'; there are patch, projector",
        kept(lambda m: m["recipe"].update(wrappers=[["evil", {}]])),
    ),
    Mistake(
        "a checkpoint whose arrays are gone",
        f"{FOLDER} kept",
        "kept is damaged, its arrays cannot be read: ...",
        kept(lambda m: None, lambda: shutil.rmtree("kept/arrays")),
    ),
    Mistake(
        "a checkpoint of which a byte was changed",
        f"{FOLDER} kept",
        "kept is damaged or was changed: its arrays do not have the digest they were saved with",
        kept(lambda m: m.update(digest="0" * 64)),
    ),
    Mistake(
        "a checkpoint of a network that nobody could build",
        f"{FOLDER} kept",
        "kept: the recipe of digits_cnn is of 1,000,000,000 layers, more than 256",
        kept(argument("depths", [10**9])),
    ),
    Mistake(
        "a manifest whose list of arrays was edited",
        f"{FOLDER} kept",
        "kept is not a checkpoint: its checkpoint.json cannot be read (...)",
        kept(lambda m: m.update(entries=[3])),
    ),
    Mistake(
        "a manifest without a network",
        f"{FOLDER} kept",
        'kept: not a network recipe: \'{"arch": null, "kwargs": {"input_shape": [8, 8, 1], "num_classes": 10},'
        ' "mean": \' (arch must be a name; got None)',
        kept(lambda m: m["recipe"].update(arch=None)),
    ),
    Mistake(
        "a manifest that is a pipe",
        f"{FOLDER} kept",
        "kept/checkpoint.json: a pipe, a socket or a device, not a file",
        both(kept(), gone("kept/checkpoint.json"), pipe("kept/checkpoint.json")),
    ),
    Mistake(
        "a normalisation for a checkpoint",
        f"{FOLDER} net --mean 0 --std 1",
        "--mean and --std go with a file of weights; a checkpoint has its own normalisation",
    ),
    Mistake(
        "a run whose results are damaged",
        "unlearn --from old --forget 2 --out out",
        "HERE/old/results.json is no JSON: ...",
        files(file("old/results.json", '{"tool": "jaxunlearn", "goal": [')),
    ),
    Mistake(
        "a folder that is no run",
        "evaluate --run thesis",
        "HERE/thesis is not a jaxunlearn run: it has no results.json",
        files(file("thesis/a.txt", "a")),
    ),
)


if __name__ == "__main__":
    print("\n".join(rows(MISTAKES)))

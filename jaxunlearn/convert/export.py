"""Write a network's weights for the library they came from: its names, axes and dtypes, bit for bit where equal."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import _files, _tree
from jaxunlearn._types import Model
from jaxunlearn.convert import fit, huggingface, layouts
from jaxunlearn.convert.files import Raw, read_raw
from jaxunlearn.convert.layouts import KERAS, Layout

#: Kinds of file that can be written.
SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pth", ".pt", ".th")
#: A tree as `flax.serialization` keeps it, which has Flax's own names.
_TREE = ".msgpack"
#: Images on which what was written is compared with the network that it was written from.
_IMAGES = 4


class Exported(NamedTuple):
    """What was written.

    Attributes:
      path: the file or folder.
      layout: whose names and axes it has.
      tensors: how many there are.
      changed: names of those whose values are not the original's; without an original, of all.
      narrowed: names of changed ones whose values the original's dtype does not hold exactly.
      added: names of counters that were written as 0, because there is no original to take them from.
      difference: largest difference of logits between what was written, read back, and
        the network, on a few random inputs.
    """

    path: Path
    layout: str
    tensors: int
    changed: tuple[str, ...]
    narrowed: tuple[str, ...]
    added: tuple[str, ...]
    difference: float


class _Content(NamedTuple):
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    changed: list[str]
    narrowed: list[str]
    added: list[str]


@_files.one_line()
def export(
    model: Model, out: str | os.PathLike[str], *, like: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Exported:
    """Write a network so that its original in PyTorch, Transformers, Keras or Flax takes it.

    What is written is read back and compared before it is put in its place; after
    a failure nothing is left behind, and an older file is as it was.

    Args:
      model: a network that `jaxunlearn.convert` can read, with whatever weights.
      out: a file (.safetensors, .npz, .pth, .pt, .th, or .msgpack for Flax's own names), or a folder where ``like``
        is one of Transformers.
      like: the file or folder that the network came from, or one of the same layout:
        names with their prefixes, order, dtypes, metadata and tensors that the network
        does not have (counters) are taken from it, and tensors of equal values bit for
        bit; the state of an optimiser is not. None: the original's usual names, counters 0.
      overwrite: whether an older file, or folder of Transformers, may be replaced.

    Raises:
      ValueError: the network is wrapped or has no counterpart there; ``like`` does not fit
        it; ``out`` is of no kind that can be written, or is ``like`` itself; a value is too
        large for the original's dtype.
      FileExistsError: ``out`` exists.
      OSError: the file system refuses, or what was written does not read back.
    """
    fit.refuse_wrapped(model)
    path = Path(os.path.abspath(out))
    raw = None if like is None else read_raw(Path(like))
    folder = Path(like) if like is not None and huggingface.is_folder(Path(like)) else None
    is_file = path.suffix.lower() in SUFFIXES
    if not is_file and folder is None:
        raise ValueError(
            f"out must be a file of kind {', '.join(SUFFIXES)}; got {path.name!r} (a folder is written only "
            "where a folder of Transformers was read)"
        )
    _check_out(path, raw, folder, overwrite, is_file)
    layout = _layout(model, path, raw)
    content = _alone(model, layout) if raw is None else _like(model, layout, raw)

    found: list[float] = []

    def fill(aside: Path) -> None:
        file = aside if is_file else aside / huggingface.WEIGHTS[0]
        if not is_file:
            assert folder is not None
            aside.mkdir()
            for name in (huggingface.CONFIG, huggingface.PREPROCESSOR):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, aside / name)
        _write(file, content, layout, None if raw is None else raw.tree)
        found.append(_compare(file, layout, model, exact=not content.narrowed))

    _put_in_place(path, fill)
    changed, narrowed, added = (tuple(names) for names in (content.changed, content.narrowed, content.added))
    return Exported(path, layout.name, len(content.tensors), changed, narrowed, added, found[0])


def _layout(model: Model, path: Path, raw: Raw | None) -> Layout:
    if raw is None:
        return fit.flax_layout(model) if path.suffix.lower() == _TREE else fit.layout_of(model)
    layout = fit.choose(_clean(raw, model).values(), model)
    if path.suffix.lower() == _TREE and layout.name != layouts.FLAX:
        raise ValueError(
            f"{path.name} would be a tree by Flax's names, and {raw.path.name} has {layout.name}'s: write a "
            f"{SUFFIXES[0]} file"
        )
    return layout


def _clean(raw: Raw, model: Model) -> dict[str, str]:
    return fit.clean_names(raw.tensors, model)


def _like(model: Model, layout: Layout, raw: Raw) -> _Content:
    """Return the tensors of a file with those of the network in their places."""
    clean = _clean(raw, model)
    known = {clean[name]: tensor for name, tensor in raw.tensors.items() if not fit.is_ignored(clean[name])}
    try:
        before = fit.named(layout, fit.fill(layout, known, model), known)
    except ValueError as error:
        raise ValueError(f"{raw.path}: {error}") from None
    after = fit.named(layout, model, known)
    content = _Content({}, raw.metadata, [], [], [])
    for name, tensor in raw.tensors.items():
        new, old = after.get(clean[name]), before.get(clean[name])
        if new is None or old is None or _same_bits(new, old):
            content.tensors[name] = tensor
            continue
        with np.errstate(over="ignore"):
            narrow = new.astype(tensor.dtype)
        if not np.isfinite(narrow).all():
            raise ValueError(f"{name} has values up to {np.abs(new).max():g}, too large for {tensor.dtype}")
        content.tensors[name] = narrow
        content.changed.append(name)
        if not np.array_equal(narrow.astype(new.dtype), new):
            content.narrowed.append(name)
    return content


def _alone(model: Model, layout: Layout) -> _Content:
    """Return the network's tensors under the usual names of its original, and counters."""
    tensors = fit.named(layout, model)
    content = _Content({}, {}, list(tensors), [], [])
    for name, tensor in tensors.items():
        content.tensors[name] = tensor
        module, _, leaf = name.rpartition(".")
        if layout is not KERAS and leaf == "running_var":
            content.added.append(f"{module}.{fit.COUNTER}")
            content.tensors[content.added[-1]] = np.array(0, np.int64)
    return content


def _same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    return bool(one.dtype == two.dtype and np.array_equal(np.ravel(one).view(np.uint8), np.ravel(two).view(np.uint8)))


def _compare(file: Path, layout: Layout, model: Model, *, exact: bool) -> float:
    """Return how far logits by a written file are from a network's; raise OSError if it holds something else."""
    raw = read_raw(file)
    tensors = {name: raw.tensors[key] for key, name in _clean(raw, model).items() if not fit.is_ignored(name)}
    if raw.tree is not None:
        layout = fit.choose(tensors, model)  # a tree made of names with dots is read with slashes
    again = fit.fill(layout, tensors, model)
    if exact and _tree.model_digest(again) != _tree.model_digest(model):
        raise OSError(errno.EIO, "what was written does not read back as it was", str(file))
    low, high = model.spec.box
    x = jax.random.uniform(jax.random.key(0), (_IMAGES, *model.spec.input_shape), minval=low, maxval=high)
    logits = jax.jit(Model.__call__)
    return float(np.abs(np.asarray(logits(again, x)) - np.asarray(logits(model, x))).max())


def _write(file: Path, content: _Content, layout: Layout, tree: Mapping[Any, Any] | None) -> None:
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in content.tensors.items()}
    if file.suffix.lower() == ".safetensors":
        import safetensors.numpy

        # Transformers asks for the format; a file's own metadata may say more.
        usual = {} if layout.name == layouts.FLAX else {"format": "pt"}
        safetensors.numpy.save_file(tensors, file, metadata=(usual | content.metadata) or None)
    elif file.suffix.lower() == ".npz":
        narrow = next((name for name, tensor in tensors.items() if tensor.dtype.name == "bfloat16"), None)
        if narrow is not None:
            raise ValueError(f"{narrow} is of bfloat16, which an .npz file cannot hold: write a .safetensors file")
        np.savez(file, **tensors)  # type: ignore[arg-type]
    elif file.suffix.lower() == _TREE:
        from flax import serialization

        nested = _nested(tensors, layout.separator) if tree is None else _filled(tree, tensors, "")
        file.write_bytes(serialization.msgpack_serialize(nested, in_place=True))  # a copy would be in another order
    else:
        _save_torch(file, tensors)


def _nested(tensors: Mapping[str, np.ndarray], separator: str) -> dict[str, Any]:
    """Return the tree that names say."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *steps, last = name.split(separator)
        node = tree
        for step in steps:
            node = node.setdefault(step, {})
        node[last] = tensor
    return tree


def _filled(tree: Mapping[Any, Any], tensors: Mapping[str, np.ndarray], before: str) -> dict[Any, Any]:
    """Return a tree of the same keys, in their order, with other arrays."""
    new: dict[Any, Any] = {}
    for key, leaf in tree.items():
        name = f"{before}{key}"
        if isinstance(leaf, Mapping):
            new[key] = _filled(leaf, tensors, f"{name}/")
        else:
            new[key] = tensors[name] if isinstance(leaf, np.ndarray) else tensors[name][()]
    return new


def _save_torch(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"writing {file.name} needs PyTorch: pip install 'jaxunlearn[torch]', or write a .safetensors file"
        ) from None

    def tensor(array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: tensor(array) for name, array in tensors.items()}, file)


def _check_out(path: Path, raw: Raw | None, folder: Path | None, overwrite: bool, is_file: bool) -> None:
    """Raise unless a file or folder can be put there; before any work."""
    for other in () if raw is None else (raw.path, folder):
        if other is not None and path.exists() and path.samefile(other):
            raise ValueError(f"out is where the weights come from, {path}: choose another place")
    if not os.path.lexists(path):
        return
    if is_file != path.is_file() or (not is_file and any(path.iterdir()) and not huggingface.is_folder(path)):
        kind = "a file" if is_file else "a folder of Transformers"
        raise FileExistsError(errno.EEXIST, f"exists and is not {kind}; it is left alone", str(path))
    if not overwrite and (is_file or any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "exists: choose another place or --overwrite it", str(path))


def _put_in_place(path: Path, fill: Callable[[Path], None]) -> None:
    """Have something made beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        fill(aside / path.name)
        if path.is_dir():
            path.rename(aside / "old")
        os.replace(aside / path.name, path)
    except BaseException:
        if (aside / "old").exists() and not path.exists():
            (aside / "old").rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)

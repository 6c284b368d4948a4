"""Keep models and run states on disk with Orbax, bit for bit.

A checkpoint is a folder: ``checkpoint.json`` says what it is and lists every
array, ``arrays/`` is a plain Orbax checkpoint. It is written aside and renamed, so
that a folder under the final name is always whole.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxunlearn import _files, _tree
from jaxunlearn._types import Model, PyTree, Recipe

_MANIFEST, _ARRAYS, _FORMAT, _VERSION = "checkpoint.json", "arrays", "jaxunlearn-checkpoint", 1


def save(path: str | os.PathLike[str], model: Model, *, meta: Mapping[str, Any] | None = None) -> None:
    """Write a model's weights, statistics and recipe to a folder, whole or not at all.

    Args:
      path: the folder; an older checkpoint there is replaced, anything else is refused.
      model: a model with a recipe.
      meta: facts to keep beside it, JSON-able.

    Raises:
      ValueError: the model has no recipe, or ``meta`` is not JSON.
      OSError: the folder exists and is not a checkpoint, cannot be written, or the disk is full.
    """
    recipe = model.spec.recipe
    if recipe is None:
        raise ValueError("the model has no recipe, so a checkpoint could not rebuild its network: give it recipe=")
    try:
        facts = json.loads(json.dumps(dict(meta or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must be JSON-able: {error}") from None
    tree = _weights(model)
    manifest = {"kind": "model", "recipe": json.loads(recipe.to_json()), "meta": facts, "digest": _tree.digest(tree)}
    _write(Path(path), manifest, tree, _entries(tree))


@_files.one_line()
def load(path: str | os.PathLike[str], build: Callable[..., Model], *, sharding: Any = None) -> Model:
    """Read a model that `save` wrote.

    Args:
      path: the folder.
      build: ``build(recipe, abstract=True) -> Model``, such as `jaxunlearn.models.from_recipe`.
      sharding: where to put the arrays: one `jax.sharding.Sharding`, or a tree of
        them that is a prefix of ``{"params": ..., "model_state": ...}``; None is
        the first device.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: not a checkpoint of a model, a damaged one, or a network that
        does not fit the arrays (the first one is named with both shapes).
    """
    path = Path(path)
    manifest = _read_manifest(path, "model")
    try:
        recipe = Recipe.from_json(json.dumps(manifest["recipe"]))
        template = build(recipe, abstract=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if template.spec.recipe != recipe:
        raise ValueError(f"build returned another network than {path} holds: {template.spec.recipe} for {recipe}")
    like = _weights(template)
    return template.replace(**_read(path, manifest, like, _entries(like), sharding))


@_files.one_line()
def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a model's checkpoint says of itself: ``recipe``, ``meta``, ``digest``.

    Raises:
      FileNotFoundError, ValueError: as `load`.
    """
    manifest = _read_manifest(Path(path), "model")
    try:
        recipe = Recipe.from_json(json.dumps(manifest["recipe"]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {"recipe": recipe, "meta": manifest["meta"], "digest": manifest["digest"]}


def save_state(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write any pytree of arrays, numbers and typed keys to a folder, whole or not at all.

    Args:
      path: the folder; an older state there is replaced, anything else is refused.
      tree: such as a method's state.

    Raises:
      OSError: as `save`.
    """
    leaves = _numbered(tree)
    stored = {name: leaf for name, leaf in leaves.items() if leaf.size}  # Orbax refuses arrays without entries
    manifest = {"kind": "state", "digest": _tree.digest(_plain(stored))}
    _write(Path(path), manifest, stored, _entries(leaves, _names(tree)))


@_files.one_line()
def load_state(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read a pytree that `save_state` wrote into the structure of another.

    Args:
      path: the folder.
      like: a tree of the same structure, of arrays or `jax.ShapeDtypeStruct`; arrays
        are restored to the sharding of their counterpart.

    Raises:
      FileNotFoundError, ValueError: as `load`.
    """
    path = Path(path)
    manifest = _read_manifest(path, "state")
    leaves = _numbered(like)
    stored = {name: leaf for name, leaf in leaves.items() if leaf.size}
    sharding = {name: getattr(leaf, "sharding", None) or _first_device() for name, leaf in stored.items()}
    restored = _read(path, manifest, stored, _entries(leaves, _names(like)), sharding)
    empty = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in leaves.items() if not leaf.size}
    values = [(restored | empty)[name] for name in leaves]
    old = jax.tree.leaves(like)
    typed = [value if hasattr(leaf, "dtype") else type(leaf)(value) for value, leaf in zip(values, old, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), typed)


def _weights(model: Model) -> dict[str, Any]:
    return {"params": dict(model.params), "model_state": dict(model.model_state)}


def _numbered(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by position, so that any registered node can be kept."""
    arrays = jax.Array | jax.ShapeDtypeStruct
    leaves = enumerate(jax.tree.leaves(tree))
    return {f"{i:06d}": leaf if isinstance(leaf, arrays) else np.asarray(leaf) for i, leaf in leaves}


def _names(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _plain(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves with typed keys as the numbers inside."""
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in leaves.items()}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _entries(tree: PyTree, names: list[str] | None = None) -> list[list[Any]]:
    """Return [name, shape, dtype] of every leaf."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    paths = names or [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return [[name, list(leaf.shape), str(leaf.dtype)] for name, (_, leaf) in zip(paths, flat, strict=True)]


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _write(path: Path, manifest: dict[str, Any], tree: PyTree, entries: list[list[Any]]) -> None:
    """Write a checkpoint beside its place, then move it there."""
    path = Path(os.path.abspath(path))
    if path.exists() and not (path / _MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "exists and is not a checkpoint of ours; it is left alone", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)), shutil.disk_usage(path.parent).free
    if free < need + 2**16:
        raise OSError(errno.ENOSPC, f"no space for a checkpoint of {need} bytes", str(path))
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    text = json.dumps({"format": _FORMAT, "version": _VERSION, **manifest, "entries": entries}, sort_keys=True)
    try:
        aside.mkdir()
        (aside / _MANIFEST).write_text(text + "\n")
        if jax.tree.leaves(tree):
            _orbax_save(aside / _ARRAYS, tree, path)
        if path.is_dir() and any(path.iterdir()):
            old = aside.with_suffix(".old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _orbax_save(folder: Path, tree: PyTree, path: Path) -> None:
    """Save, and turn whatever Orbax's threads make of a failing disk into one OSError."""
    try:
        ocp.save(folder, tree, checkpointable_name="state")
    except Exception as error:
        reason = errno.ENOSPC if "space" in str(error).lower() else getattr(error, "errno", None) or errno.EIO
        raise OSError(reason, f"the checkpoint could not be written ({_line(error)})", str(path)) from None


def _read_manifest(path: Path, kind: str) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no checkpoint there", str(path))
    try:
        manifest: dict[str, Any] = _files.read_json(path / _MANIFEST)
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
        version, found = manifest["version"], manifest["kind"]
        needed = {"digest": str, "entries": list} | ({"recipe": dict, "meta": dict} if found == "model" else {})
        for name, expected in needed.items():
            if not isinstance(manifest[name], expected):
                raise ValueError(f"its {name} is a {type(manifest[name]).__name__}")
        for name, shape, dtype in manifest["entries"]:
            if not (isinstance(name, str) and isinstance(dtype, str) and all(type(size) is int for size in shape)):
                raise ValueError(f"one of its entries is {[name, shape, dtype]}")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is not a checkpoint: it has no {_MANIFEST}; name a file of weights or the folder of a run"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint: its {_MANIFEST} cannot be read ({_line(error)})") from None
    if version != _VERSION:
        raise ValueError(f"{path} has checkpoint version {version}; this library reads version {_VERSION}")
    if found != kind:
        raise ValueError(f"{path} holds a {found}, not a {kind}")
    return manifest


def _read(path: Path, manifest: dict[str, Any], like: PyTree, entries: list[list[Any]], sharding: Any) -> Any:
    """Read the arrays into the structure of ``like`` after comparing it with the manifest, then compare the digest."""
    _compare(path, manifest["entries"], entries)
    where = jax.tree.broadcast(_first_device() if sharding is None else sharding, like)
    target = jax.tree.map(
        lambda x, s: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, where
    )
    tree = target
    if jax.tree.leaves(target):
        try:
            tree = ocp.load(os.path.abspath(path / _ARRAYS), target, checkpointable_name="state")
        except Exception as error:
            raise ValueError(f"{path} is damaged, its arrays cannot be read: {_line(error)}") from None
    plain = _plain(tree) if manifest["kind"] == "state" else tree
    if _tree.digest(plain) != manifest["digest"]:
        raise ValueError(f"{path} is damaged or was changed: its arrays do not have the digest they were saved with")
    return tree


def _compare(path: Path, saved: list[list[Any]], wanted: list[list[Any]]) -> None:
    """Raise a ValueError that names the first array that differs."""
    have, need = ({name: (tuple(shape), dtype) for name, shape, dtype in entries} for entries in (saved, wanted))
    for name, (shape, dtype) in need.items():
        if name not in have:
            raise ValueError(f"{path} does not fit: it has no {name} of shape {shape}")
        if have[name] != (shape, dtype):
            raise ValueError(f"{path} does not fit: {name} has {have[name]}, the target needs {(shape, dtype)}")
    for name in have:
        if name not in need:
            raise ValueError(f"{path} does not fit: it has {name} of shape {have[name][0]}, the target has not")


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the tracebacks that Orbax's threads log of a failure; the error itself comes up anyway."""
    return "_SignalingThread" not in record.getMessage()


logging.getLogger("absl").addFilter(_is_news)  # for good, as those threads outlive the call


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."

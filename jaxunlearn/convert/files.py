"""Read weights from files that others wrote, without running what is in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _files
from jaxunlearn.convert import huggingface, kinds

_NESTED = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
#: Wrappers around wrappers that are taken off: a name of a million of them would take hours.
_MOST_PREFIXES = 16
_SAVE_FLAX = "save the network's variables alone, {'params': ..., 'batch_stats': ...}"
_SAVE = "save the network's state_dict() alone, best as .safetensors"
#: Bytes that any file may become, and how often its size a larger one may: more is damage, or made to fill the memory.
_SMALL, _TIMES = 2**28, 20


class Raw(NamedTuple):
    """What a file of weights holds, as it is.

    Attributes:
      path: of the file itself, also where a folder was named.
      tensors: arrays by the file's own names, in its order and dtypes (bfloat16 by `ml_dtypes`).
      metadata: of a .safetensors file.
      tree: of a .msgpack file, the dicts that the arrays lie in.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    tree: dict[Any, Any] | None = None


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read named arrays from a file.

    What a file is, is seen from what is in it. Those of safetensors, NumPy and
    `flax.serialization` (msgpack; names joined by slashes, no state of an
    optimiser) are read under any name; PyTorch pickles (``.pth``, ``.pt``, ``.th``, ``.tar``,
    ``.ckpt``, ``.bin``) by ``torch.load(weights_only=True)``, which refuses code, and
    only where the name says that it is one. A state dict one level
    down (``state_dict``, ``model``, ``net``) is found, prefixes that all names
    share (``module.``) are cut off.

    Args:
      path: the file, or a folder of Transformers.

    Returns:
      Arrays by name, in the order of the file.

    Raises:
      OSError: the file is missing, cannot be read, or is none (a pipe, a device).
      ValueError: unknown kind of file, a corrupt one, one with more than plain
        tensors in it or more than it can hold, or a library that is not installed;
        one printable line, whatever the file says.
    """
    return strip_prefix(read_raw(path).tensors)


@_files.one_line()
def read_raw(path: str | Path) -> Raw:
    """Read what `read_state_dict` reads under the file's own names.

    Raises:
      OSError, ValueError: as `read_state_dict`.
    """
    path = Path(path)
    if huggingface.is_folder(path):
        path = huggingface.weights_file(path)
    kind = kinds.kind_of(path)
    metadata: dict[str, str] = {}
    tree = None
    if kind == "safetensors":
        tensors, metadata = _safetensors(path)
    elif kind == "msgpack":
        tree = _msgpack(path)
        tensors = dict(_flat(path, tree, ""))
    else:
        tensors = (_npz if kind == "npz" else _torch)(path)
    if not tensors:
        raise ValueError(f"{path} holds no tensors; {_SAVE}")
    return Raw(path, tensors, metadata, tree)


def strip_prefix(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Cut off what wrappers put before every name.

    >>> strip_prefix({"module.fc.weight": 1, "module.fc.bias": 2})
    {'fc.weight': 1, 'fc.bias': 2}
    """
    named = dict(tensors)
    for _ in range(_MOST_PREFIXES if named else 0):
        shared = next((p for p in PREFIXES if all(name.startswith(p) for name in named)), None)
        if shared is None:
            break
        named = {name.removeprefix(shared): value for name, value in named.items()}
    return named


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        import safetensors
    except ImportError:
        raise ValueError(f"reading {path} needs safetensors: pip install 'jaxunlearn[flax]'") from None
    tensors: dict[str, np.ndarray] = {}
    name = ""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                tensors[name] = file.get_tensor(name)
            return tensors, dict(file.metadata() or {})
    except AttributeError as error:  # a dtype that NumPy has no name for
        raise ValueError(f"{path}: tensor {name!r} is of {error.name}, which is not read: save it as floats") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no complete safetensors file ({_line(error)}): {kinds.AGAIN}") from None


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
            members = archive.infolist()
            return {member.filename.removesuffix(".npy"): _files.npz_array(archive, member) for member in members}
    except (Exception, MemoryError) as error:  # zipfile and NumPy raise nearly anything, too
        raise ValueError(f"{path} is no complete npz file of plain arrays ({_line(error)}): {kinds.AGAIN}") from None


def _msgpack(path: Path) -> dict[Any, Any]:
    """Return the weights in a file of `flax.serialization`; msgpack holds plain data alone, nothing that could run."""
    try:
        from flax import serialization
    except ImportError:
        raise ValueError(f"reading {path} needs Flax: pip install 'jaxunlearn[flax]'") from None
    try:
        with warnings.catch_warnings():  # NumPy's, of dtypes by old names
            warnings.simplefilter("ignore")
            tree = serialization.msgpack_restore(path.read_bytes())
    except (Exception, MemoryError) as error:  # msgpack, NumPy and Flax raise nearly anything of a damaged one
        raise ValueError(f"{path} is no complete msgpack file of Flax ({_line(error)}): {kinds.AGAIN}") from None
    if isinstance(tree, Mapping) and isinstance(tree.get("params"), Mapping):  # variables, or a whole TrainState
        tree = {key: value for key, value in tree.items() if isinstance(value, Mapping) and key != "opt_state"}
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}, not a dict of arrays; {_SAVE_FLAX}")
    return tree


def _flat(path: Path, tree: Mapping[Any, Any], before: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a tree by their names."""
    for key, value in tree.items():
        name = f"{before}{key}"
        if not isinstance(key, str | int) or "/" in str(key):
            raise ValueError(f"{path} has the name {key!r} in it, which is none of Flax's; {_SAVE_FLAX}")
        if isinstance(value, Mapping):
            yield from _flat(path, value, f"{name}/")
        elif isinstance(value, np.ndarray | np.generic):
            yield name, np.asarray(value)
        else:
            raise ValueError(f"{path} has more than arrays in it: {name!r} is a {type(value).__name__}; {_SAVE_FLAX}")


def _check_size(path: Path, size: int) -> None:
    """Raise a ValueError if so many bytes cannot come of a file by honest means."""
    if size > max(_SMALL, _TIMES * path.stat().st_size):
        raise ValueError(f"it would fill {size / 2**30:,.1f} GiB, more than {_TIMES} times its own size")


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"reading {path} needs PyTorch: pip install 'jaxunlearn[torch]', or convert it to .safetensors"
        ) from None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_size(path, sum(member.file_size for member in archive.infolist()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own text advises to run the code
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {found[1]}" if found else "damaged, or with more than plain tensors in it"
        raise ValueError(f"{path} is no plain state dict ({what}) and was not run; {_SAVE}") from None
    except Exception as error:  # a damaged file makes PyTorch raise nearly anything
        raise ValueError(f"{path} is no complete PyTorch file ({_line(error)}): {kinds.AGAIN}") from None
    return _plain(path, loaded)


def _plain(path: Path, loaded: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a loaded object that is a state dict or holds one."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} is no state dict: it holds a {type(loaded).__name__}; {_SAVE}")
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} is no plain state dict: a name in it is a {type(name).__name__}; {_SAVE}")
        if not hasattr(value, "detach"):
            raise ValueError(
                f"{path} is no plain state dict: {name!r} is a {type(value).__name__}, not a tensor; {_SAVE}"
            )
    try:
        _check_size(path, sum(value.numel() * value.element_size() for value in loaded.values()))
        return {name: as_numpy(name, value) for name, value in loaded.items()}
    except (ValueError, RuntimeError) as error:  # the latter of tensors that have no size
        raise ValueError(f"{path}: {_line(error)}") from None


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Return an array or a PyTorch tensor as a NumPy array of the same dtype."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    try:
        tensor = value.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # which PyTorch does not hand to NumPy
            return tensor.contiguous().view(dtype=_torch_dtype("int16")).numpy().view(jnp.bfloat16)
        return np.asarray(tensor.numpy())
    except (RuntimeError, TypeError, NotImplementedError):
        what = f"{str(value.layout).removeprefix('torch.')} of {str(value.dtype).removeprefix('torch.')}"
        raise ValueError(f"tensor {name!r} is no dense array ({what}): save it as a dense one of floats") from None


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _line(error: BaseException) -> str:
    """Return the first sentence of an error's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

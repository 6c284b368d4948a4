"""Read weights from files that others wrote, without running what is in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn.convert import huggingface

_TORCH = (".pth", ".pt", ".th", ".tar", ".ckpt", ".bin")
_SUFFIXES = (".safetensors", ".npz", *_TORCH)
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


class Raw(NamedTuple):
    """What a file of weights holds, as it is.

    Attributes:
      path: of the file itself, also where a folder was named.
      tensors: arrays by the file's own names, in its order and dtypes (bfloat16 by `ml_dtypes`).
      metadata: of a .safetensors file.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read named arrays in PyTorch's names and layout from a file.

    ``.safetensors`` and ``.npz`` files are read as they are; PyTorch pickles
    (``.pth``, ``.pt``, ``.th``, ``.tar``, ``.ckpt``, ``.bin``) by
    ``torch.load(weights_only=True)``, which refuses code. A state dict one level
    down (``state_dict``, ``model``, ``net``) is found, prefixes that all names
    share (``module.``) are cut off.

    Args:
      path: the file, or a folder of Transformers.

    Returns:
      Arrays by name, in the order of the file.

    Raises:
      OSError: the file is missing or cannot be read.
      ValueError: unknown kind of file, a corrupt one, one with more than plain
        tensors in it, or a library that is not installed.
    """
    return strip_prefix(read_raw(path).tensors)


def read_raw(path: str | Path) -> Raw:
    """Read what `read_state_dict` reads under the file's own names.

    Raises:
      OSError, ValueError: as `read_state_dict`.
    """
    path = Path(path)
    if huggingface.is_folder(path):
        path = huggingface.weights_file(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"weights must be a file of kind {', '.join(_SUFFIXES)}; got {path.name!r}")
    with path.open("rb"):  # a missing, unreadable or odd path fails here, with the system's own reason
        pass
    metadata: dict[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _safetensors(path)
    elif path.suffix.lower() == ".npz":
        tensors = _npz(path)
    else:
        tensors = _torch(path)
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors")
    return Raw(path, tensors, metadata)


def strip_prefix(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Cut off what wrappers put before every name.

    >>> strip_prefix({"module.fc.weight": 1, "module.fc.bias": 2})
    {'fc.weight': 1, 'fc.bias': 2}
    """
    named = dict(tensors)
    while named:
        shared = next((p for p in _PREFIXES if all(name.startswith(p) for name in named)), None)
        if shared is None:
            break
        named = {name.removeprefix(shared): value for name, value in named.items()}
    return named


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        import safetensors
    except ImportError:
        raise ValueError(f"reading {path.name} needs safetensors: pip install 'jaxunlearn[flax]'") from None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except AttributeError as error:  # a dtype that NumPy has no name for
        raise ValueError(f"{path.name} has tensors of a kind that cannot be read: {_line(error)}") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is no complete safetensors file: {_line(error)}") from None


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name} is no complete npz file of plain arrays: {_line(error)}") from None


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"reading {path.name} needs PyTorch: pip install 'jaxunlearn[torch]', or convert it to .safetensors"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own text advises to run the code
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {found[1]}" if found else "damaged, or with more than plain tensors in it"
        raise ValueError(
            f"{path.name} is no plain state dict ({what}) and was not run;"
            " save the network's state_dict() alone, best as .safetensors"
        ) from None
    except Exception as error:  # a damaged file makes PyTorch raise nearly anything
        raise ValueError(f"{path.name} is no complete PyTorch file: {_line(error)}") from None
    return _plain(path, loaded)


def _plain(path: Path, loaded: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a loaded object that is a state dict or holds one."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path.name} is no state dict: it holds a {type(loaded).__name__}")
    tensors = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not hasattr(value, "detach"):
            raise ValueError(f"{path.name} is no plain state dict: {name!r} is a {type(value).__name__}, not a tensor")
        tensors[name] = as_numpy(name, value)
    return tensors


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Return an array or a PyTorch tensor as a NumPy array of the same dtype."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    try:
        tensor = value.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # which PyTorch does not hand to NumPy
            return tensor.contiguous().view(dtype=_torch_dtype("int16")).numpy().view(jnp.bfloat16)
        return np.asarray(tensor.numpy())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"tensor {name!r} is no dense array: {_line(error)}") from None


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _line(error: BaseException) -> str:
    """Return the first sentence of an error's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

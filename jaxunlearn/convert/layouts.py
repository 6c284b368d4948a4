"""Names and axes of tensors in other libraries, against the paths and axes of Flax."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]

_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
#: Arrays that PyTorch's own modules keep under names of their own.
_TORCH |= {"in_proj_kernel": "in_proj_weight"} | {
    name: name for name in ("in_proj_bias", "class_token", "pos_embedding")
}
_KERAS = {"kernel": "kernel", "scale": "gamma", "bias": "bias", "mean": "moving_mean", "var": "moving_variance"}


class Layout(NamedTuple):
    """How a library lays out a network's tensors.

    Attributes:
      separator: between the steps of a name.
      kernel: the last step of the name of a dense or convolution kernel.
      class_axis: of the classifier's kernel and bias, the axis of the classes.
      tensors: ``tensors(shapes, names)`` gives, for shapes by path here, name
        and shape there; ``names`` are those of a file.
      to_flax: ``to_flax(path, array, shape)`` gives the array here, of that shape.
    """

    separator: str
    kernel: str
    class_axis: int
    tensors: Callable[[Mapping[str, Shape], Container[str]], dict[str, tuple[str, Shape]]]
    to_flax: Callable[[str, np.ndarray, Shape], np.ndarray]


def torch_name(path: str) -> str:
    """Return PyTorch's name of a parameter path.

    >>> torch_name("layer1_0/downsample_1/var"), torch_name("encoder_layer__0/in_proj_kernel")
    ('layer1.0.downsample.1.running_var', 'encoder_layer_0.in_proj_weight')
    """
    *modules, leaf = _split(path, "PyTorch", _TORCH)
    return ".".join([*(_torch_module(name) for name in modules), _TORCH[leaf]])


def _torch_module(name: str) -> str:
    """One underscore before a number is a dot there, two are one underscore."""
    return re.sub(r"__(\d+)$", r"_\1", name) if re.search(r"__\d+$", name) else re.sub(r"_(\d+)$", r".\1", name)


def to_torch(path: str, array: np.ndarray) -> np.ndarray:
    """Return an array with PyTorch's axes."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if path.endswith("kernel") else array


def _torch_tensors(shapes: Mapping[str, Shape], names: Container[str]) -> dict[str, tuple[str, Shape]]:
    del names
    return {path: (torch_name(path), _torch_shape(path, shape)) for path, shape in shapes.items()}


def _torch_shape(path: str, shape: Shape) -> Shape:
    return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("kernel") else shape


def _from_torch(path: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    del shape
    return np.moveaxis(array, (1, 0), (-2, -1)) if path.endswith("kernel") else array


def _keras_tensors(shapes: Mapping[str, Shape], names: Container[str]) -> dict[str, tuple[str, Shape]]:
    out = {}
    for path, shape in shapes.items():
        *modules, leaf = _split(path, "Keras", _KERAS)
        layer = "/".join(modules)
        name = f"{layer}/{_KERAS[leaf]}"
        if leaf == "bias" and f"{layer}/scale" in shapes:
            name = f"{layer}/beta"
        elif leaf == "kernel" and len(shape) == 4 and shape[2] == 1 and name not in names:
            name, shape = f"{layer}/depthwise_kernel", (*shape[:2], shape[3], 1)
        out[path] = name, shape
    return out


def _split(path: str, library: str, known: Mapping[str, str]) -> list[str]:
    parts = path.split("/")
    if parts[-1] not in known:
        raise ValueError(
            f"parameter {path!r} has no counterpart in {library}: its last step is none of {', '.join(known)}"
        )
    return parts


TORCH = Layout(".", "weight", 0, _torch_tensors, _from_torch)
#: Depthwise kernels are (height, width, channels, 1) there and (height, width, 1, channels) here.
KERAS = Layout("/", "kernel", -1, _keras_tensors, lambda path, array, shape: array.reshape(shape))


def of(names: Iterable[str]) -> Layout:
    """Return the layout that the names are of: Keras's have slashes, PyTorch's cannot."""
    return KERAS if any("/" in name for name in names) else TORCH

"""Names and axes of tensors in other libraries, against the paths and axes of Flax.

Flax's own names are a layout, too: files say or leave out the collection, and
join the steps by slashes or dots. PyTorch's names come in dialects: Transformers has names of its own for networks
that torchvision has, too, and old files have names that newer ones gave up.
`choose` finds the layout of a file by its names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxunlearn.convert import dialects

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
      name: of the layout, to be shown.
      separator: between the steps of a name.
      class_axis: of the classifier's kernel and bias, the axis of the classes.
      tensors: ``tensors(shapes, names)`` gives, for shapes by path here, name
        and shape there; ``names`` are those of a file.
      to_flax: ``to_flax(path, array, shape)`` gives the array here, of that shape.
      from_flax: ``from_flax(path, array, shape)`` gives the array there, of that shape.
    """

    name: str
    separator: str
    class_axis: int
    tensors: Callable[[Mapping[str, Shape], Collection[str]], dict[str, tuple[str, Shape]]]
    to_flax: Callable[[str, np.ndarray, Shape], np.ndarray]
    from_flax: Callable[[str, np.ndarray, Shape], np.ndarray]


def torch_name(path: str) -> str:
    """Return PyTorch's name of a parameter path.

    >>> torch_name("layer1_0/downsample_1/var"), torch_name("encoder_layer__0/in_proj_kernel")
    ('layer1.0.downsample.1.running_var', 'encoder_layer_0.in_proj_weight')
    >>> torch_name("features_2/conv_0_1/scale")
    'features.2.conv.0.1.weight'
    """
    *modules, leaf = _split(path, "PyTorch", _TORCH)
    return ".".join([*(_torch_module(name) for name in modules), _TORCH[leaf]])


def _torch_module(name: str) -> str:
    """Before the numbers at the end, one underscore is a dot there, two are one underscore."""
    return re.sub(r"(__?)(\d+)(?=(?:__?\d+)*$)", lambda m: ("_" if m[1] == "__" else ".") + m[2], name)


def to_torch(path: str, array: np.ndarray) -> np.ndarray:
    """Return an array with PyTorch's axes."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if path.endswith("kernel") else array


def _torch_tensors(rename: Callable[[str], str]) -> Callable[..., dict[str, tuple[str, Shape]]]:
    def tensors(shapes: Mapping[str, Shape], names: Collection[str]) -> dict[str, tuple[str, Shape]]:
        del names
        return {path: (rename(torch_name(path)), _torch_shape(path, shape)) for path, shape in shapes.items()}

    return tensors


def _torch_shape(path: str, shape: Shape) -> Shape:
    return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("kernel") else shape


def _from_torch(path: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    del shape
    return np.moveaxis(array, (1, 0), (-2, -1)) if path.endswith("kernel") else array


def _to_torch(path: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    del shape
    return to_torch(path, array)


def _keras_tensors(shapes: Mapping[str, Shape], names: Collection[str]) -> dict[str, tuple[str, Shape]]:
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


def _torch(name: str, rename: Callable[[str], str]) -> Layout:
    return Layout(name, ".", 0, _torch_tensors(rename), _from_torch, _to_torch)


def _reshaped(path: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    """Depthwise kernels are (height, width, channels, 1) there and (height, width, 1, channels) here."""
    del path
    return array.reshape(shape)


TORCH = _torch("PyTorch", str)
KERAS = Layout("Keras", "/", -1, _keras_tensors, _reshaped, _reshaped)
#: All layouts by name; of equally good ones the first is chosen.
LAYOUTS = {TORCH.name: TORCH, **{name: _torch(name, rename) for name, rename in dialects.DIALECTS.items()}}
LAYOUTS[KERAS.name] = KERAS


#: The name of the layouts that `flax` returns.
FLAX = "Flax"
#: How statistics may be named that lie at a path of Linen's ``batch_stats``, or of an NNX module's state.
_STATE = ("batch_stats", "model_state/batch_stats", "model_state", "")


def flax(names: Collection[str] = ("/",), state: Collection[str] = ()) -> list[Layout]:
    """Return the ways in which arrays may have Flax's own names, the usual one first.

    Args:
      names: of a file; with a slash in one of them slashes join the steps, else dots do.
      state: paths of the arrays that are statistics and not parameters.

    >>> [layout.tensors({"fc/bias": (3,)}, ())["fc/bias"][0] for layout in flax()]
    ['params/fc/bias', 'fc/bias']
    """
    separator = "/" if any("/" in name for name in names) else "."
    return [
        _flax(separator, params, stats, frozenset(state))
        for params in ("params", "")
        for stats in (_STATE if state else _STATE[:1])
    ]


def _flax(separator: str, params: str, stats: str, state: frozenset[str]) -> Layout:
    def tensors(shapes: Mapping[str, Shape], names: Collection[str]) -> dict[str, tuple[str, Shape]]:
        del names
        full = {path: "/".join(filter(None, (stats if path in state else params, path))) for path in shapes}
        return {path: (full[path].replace("/", separator), shape) for path, shape in shapes.items()}

    def same(path: str, array: np.ndarray, shape: Shape) -> np.ndarray:
        del path, shape
        return array

    return Layout(FLAX, separator, -1, tensors, same, same)


def of_arch(arch: str) -> Layout:
    """Return the layout of a network's original, by the name of the network here."""
    if arch.startswith("mobilenet_v1"):
        return KERAS
    return LAYOUTS[_OF_ARCH[arch]] if arch in _OF_ARCH else TORCH


_OF_ARCH = {
    "hf_resnet": "Transformers ResNet",
    "hf_mobilenet_v2": "Transformers MobileNetV2",
    "hf_vit": "Transformers ViT",
}


def choose(names: Collection[str], shapes: Mapping[str, Shape], state: Collection[str] = ()) -> Layout:
    """Return the layout that most of a network's names in a file are of: Flax's or Keras's where they have slashes.

    Args:
      names: of the file's tensors.
      shapes: of the network's arrays, by path here.
      state: paths of those that are statistics and not parameters.

    >>> shapes = {"fc/kernel": (2, 3), "fc/bias": (3,)}
    >>> choose(["linear.weight", "linear.bias"], shapes).name, choose(["params.fc.kernel"], shapes).name
    ('kuangliu', 'Flax')
    """
    ours, slashes = flax(names, state), any("/" in name for name in names)
    usual = KERAS if slashes else TORCH
    if any(name.startswith((f"params{ours[0].separator}", f"batch_stats{ours[0].separator}")) for name in names):
        usual = ours[0]
    fitting = [*ours, KERAS] if slashes else [*_torch_layouts(), *ours]
    best = max(fitting, key=lambda layout: _count(layout, names, shapes))
    return best if _count(best, names, shapes) else usual


def choose_torch(names: Collection[str], shapes: Mapping[str, Shape]) -> Layout:
    """Return the dialect of PyTorch's names that most of a network's names in a file are of."""
    return max(_torch_layouts(), key=lambda layout: _count(layout, names, shapes))


def _torch_layouts() -> list[Layout]:
    return [layout for layout in LAYOUTS.values() if layout is not KERAS]


def _count(layout: Layout, names: Collection[str], shapes: Mapping[str, Shape]) -> int:
    """Return how many of a network's arrays are in a file by their names in a layout."""
    known = set(names)
    try:
        return sum(name in known for name, _ in layout.tensors(shapes, names).values())
    except ValueError:  # one of the arrays has no counterpart there
        return 0


def head_layer(layout: Layout, head: Iterable[str]) -> str:
    """Return the name there of the classifier layer, "" where there is none.

    >>> head_layer(TORCH, ("classifier_1",))
    'classifier.1'
    """
    path = "/".join((*head, "kernel"))
    if path == "kernel":
        return ""
    return layout.tensors({path: (1, 1)}, ())[path][0].rpartition(layout.separator)[0]


def class_count(tensors: Mapping[str, np.ndarray], head: Iterable[str]) -> int | None:
    """Return the number of classes in the classifier's tensor, in whatever layout it is found."""
    head = tuple(head)
    for layout in (*LAYOUTS.values(), *flax(tensors)):
        name = layout.separator.join((head_layer(layout, head), "kernel" if layout.class_axis == -1 else "weight"))
        if name in tensors and tensors[name].ndim:
            return int(tensors[name].shape[layout.class_axis])
    return None

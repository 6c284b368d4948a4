"""Reference networks by name: a `Recipe` says which, `from_recipe` builds it.

>>> from_recipe(recipe("digits_cnn"), abstract=True).spec.input_shape
(8, 8, 1)
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxunlearn import _validate, wrappers
from jaxunlearn._types import Array, Model, Preprocess, Recipe
from jaxunlearn.adapters import LinenInit, from_linen
from jaxunlearn.models.mobilenet import MobileNetV1
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.models.vit import ViT

__all__ = ["from_recipe", "names", "recipe"]


class _Arch(NamedTuple):
    """A network's fields and what it takes for granted."""

    fields: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: type[nn.Module] = ResNet
    #: Side of the input over the shorter side that a picture is resized to before its middle is cut out.
    crop: float = 1.0
    resample: str = "bilinear"


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_DIGITS = ((0.3053,), (0.3760,))
#: From [0, 1] to [-1, 1].
_CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _cifar(depth: int, shortcut: str) -> _Arch:
    blocks = (depth - 2) // 6
    fields = dict(depths=(blocks,) * 3, widths=(16, 32, 64), shortcut=shortcut)
    # The widespread third-party weights were trained with ImageNet's normalisation.
    return _Arch(fields, 10, (32, 32, 3), *_IMAGENET)


def _wide(depths: tuple[int, ...], stem: str = "imagenet", max_pool: bool = True, **more: Any) -> dict[str, Any]:
    layout = dict(depths=depths, widths=(64, 128, 256, 512), shortcut="downsample", head="fc")
    return layout | dict(stem=stem, max_pool=max_pool) | more


def _vit(patch: int, width: int, depth: int, heads: int) -> dict[str, Any]:
    return dict(patch=patch, width=width, depth=depth, heads=heads, hidden=4 * width)


def _mobilenet(width: float) -> _Arch:
    return _Arch(dict(width=width), 1000, (224, 224, 3), *_CENTRED, network=MobileNetV1)


_ARCHS: dict[str, _Arch] = {
    "digits_cnn": _Arch(dict(depths=(1, 2), widths=(16, 32)), 10, (8, 8, 1), *_DIGITS),
    **{f"cifar_resnet{n}": _cifar(n, "A") for n in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{n}b": _cifar(n, "shortcut") for n in (8, 14, 20, 32, 44, 56, 110)},
    "resnet18_cifar": _Arch(_wide((2, 2, 2, 2), "cifar", False), 10, (32, 32, 3), *_CIFAR10),
    "resnet18_cifar_pool": _Arch(_wide((2, 2, 2, 2), "cifar"), 10, (32, 32, 3), *_CIFAR10),
    "resnet18": _Arch(_wide((2, 2, 2, 2)), 1000, (224, 224, 3), *_IMAGENET, crop=0.875),
    "resnet50": _Arch(_wide((3, 4, 6, 3), bottleneck=True), 1000, (224, 224, 3), *_IMAGENET, crop=0.875),
    "vit_tiny_cifar": _Arch(_vit(4, 192, 6, 3), 10, (32, 32, 3), *_CIFAR10, network=ViT),
    "vit_b_16": _Arch(_vit(16, 768, 12, 12), 1000, (224, 224, 3), *_IMAGENET, network=ViT, crop=0.875),
    **{f"mobilenet_v1_{percent:03d}": _mobilenet(percent / 100) for percent in (25, 50, 75, 100)},
}


def names() -> tuple[str, ...]:
    """Return the names of the networks, in order of size within a family."""
    return tuple(_ARCHS)


def recipe(
    arch: str,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    mean: Any = None,
    std: Any = None,
    preprocess: Preprocess | None = None,
) -> Recipe:
    """Return the recipe of a network, with its usual settings where none are given.

    Args:
      arch: one of `names`, or ``package.module:Class`` for a Linen module of one's own.
      num_classes: C; needed for a module of one's own.
      input_shape: (height, width, channels) in pixels; needed for a module of one's own.
      mean, std: per-channel normalisation of inputs in [0, 1]; 0 and 1 for none.
      preprocess: how pictures of other sizes are made to fit; default: the network's usual way,
        for a module of one's own the shorter side resized to the input's, then its middle.

    Raises:
      ValueError: unknown name, or an argument out of range.

    >>> recipe("cifar_resnet20", num_classes=100).kwargs
    (('input_shape', (32, 32, 3)), ('num_classes', 100))
    """
    known = _ARCHS.get(arch)
    if known is None:
        if ":" not in arch:
            raise ValueError(_unknown(arch))
        if num_classes is None or input_shape is None:
            raise ValueError(f"{arch} is not one of ours: give num_classes and input_shape")
    else:
        num_classes = known.num_classes if num_classes is None else num_classes
        input_shape = known.input_shape if input_shape is None else input_shape
        if mean is None and std is None:
            mean, std = known.mean, known.std
    _validate.positive_int("num_classes", num_classes)
    shape = tuple(int(size) for size in input_shape)  # type: ignore[union-attr]
    if len(shape) != 3 and known is not None:
        raise ValueError(f"input_shape must be (height, width, channels); got {shape}")
    if preprocess is None and len(shape) == 3:
        share, resample = (1.0, "bilinear") if known is None else (known.crop, known.resample)
        preprocess = Preprocess(resize=round(min(shape[:2]) / share), crop=(shape[0], shape[1]), resample=resample)
    return Recipe(
        arch=arch,
        kwargs=(("input_shape", shape), ("num_classes", int(num_classes))),  # type: ignore[arg-type]
        mean=None if mean is None else tuple(float(value) for value in mean),
        std=None if std is None else tuple(float(value) for value in std),
        preprocess=preprocess,
    )


def from_recipe(
    recipe: Recipe,
    *,
    variables: Mapping[str, Any] | None = None,
    key: Array | None = None,
    abstract: bool = False,
) -> Model:
    """Build a network from its recipe and exactly one source of weights.

    Args:
      recipe: of `recipe`, a checkpoint or a file.
      variables: Linen variables, ``{"params": ..., "batch_stats": ...}``.
      key: random key for fresh weights.
      abstract: shapes only (`jax.ShapeDtypeStruct`), to be filled by a loader.

    Raises:
      ValueError: an unknown network, none or several sources, variables that do not fit.

    >>> model = from_recipe(recipe("digits_cnn"), key=jax.random.key(0))
    >>> model(jax.numpy.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    if (variables is not None) + (key is not None) + bool(abstract) != 1:
        raise ValueError("give exactly one of variables, key, abstract=True")
    if recipe.wrappers:
        if not abstract:
            names = ", ".join(name for name, _ in recipe.wrappers)
            raise ValueError(f"a network inside {names} needs abstract=True: its weights come from a checkpoint")
        return wrappers.rebuild(from_recipe(dataclasses.replace(recipe, wrappers=()), abstract=True), recipe)
    module, kwargs = _module(recipe)
    input_shape = tuple(kwargs["input_shape"])
    if variables is None:
        init = jax.jit(LinenInit(module, input_shape))
        params, state = init(key) if key is not None else jax.eval_shape(init, jax.random.key(0))
        variables = {"params": params, **state}
    head = getattr(module, "head", None)
    return from_linen(
        module,
        variables,
        input_shape=input_shape,
        num_classes=kwargs["num_classes"],
        mean=recipe.mean,
        std=recipe.std,
        head=tuple(head.split("/")) if isinstance(head, str) else None,
        recipe=recipe,
    )


def _module(recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    kwargs = dict(recipe.kwargs)
    for name in ("input_shape", "num_classes"):
        if name not in kwargs:
            raise ValueError(f"the recipe of {recipe.arch} lacks {name}")
    fields = {name: value for name, value in kwargs.items() if name != "input_shape"}
    try:
        if recipe.arch in _ARCHS:
            known = _ARCHS[recipe.arch]
            return known.network(**{**known.fields, **fields}), kwargs
        return _own_class(recipe.arch)(**fields), kwargs
    except TypeError as error:
        raise ValueError(f"the recipe of {recipe.arch} does not fit it: {error}") from None


def _own_class(arch: str) -> type[nn.Module]:
    """Import ``package.module:Class``; a recipe may come from a stranger, so nothing but a Linen class is called."""
    module_name, colon, class_name = arch.partition(":")
    if not colon:
        raise ValueError(_unknown(arch))
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot import the network {arch!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{arch!r} is not a class of Linen modules")
    return found


def _unknown(arch: str) -> str:
    close = difflib.get_close_matches(arch, _ARCHS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(_ARCHS)}"
    return f"unknown network {arch!r}; {hint}"

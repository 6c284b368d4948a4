"""Reference networks by name: a `Recipe` says which, `from_recipe` builds it.

>>> from_recipe(recipe("digits_cnn"), abstract=True).spec.input_shape
(8, 8, 1)
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from jaxunlearn import _validate, wrappers
from jaxunlearn._types import Array, Model, Preprocess, Recipe
from jaxunlearn.adapters import LinenInit, from_linen
from jaxunlearn.models import own
from jaxunlearn.models.registry import ALIASES, ARCHS, TIMM, Arch

__all__ = ["Arch", "aliases", "canonical", "classifier", "from_recipe", "known", "names", "recipe"]

#: What a stranger's recipe may ask for: more would be built for hours, or fill the memory with one batch.
_MOST_LAYERS, _MOST_INPUTS, _MOST_CLASSES = 256, 2**27, 2**20
#: Arguments of networks of ours that say how often something is built.
_LOOPS = ("depth", "depths", "blocks", "grid")


def names() -> tuple[str, ...]:
    """Return the names of the networks, in order of size within a family."""
    return tuple(ARCHS)


def aliases(arch: str) -> tuple[str, ...]:
    """Return the names that others give to a network whose tensors have the same names and shapes.

    >>> aliases("cifar_resnet20")
    ('resnet20',)
    """
    return tuple(alias for alias, name in ALIASES.items() if name == arch)


def canonical(arch: str) -> str:
    """Return our name of a network that may be called by an alias.

    >>> canonical("resnet20"), canonical("resnet50.a1_in1k"), canonical("package.module:Net")
    ('cifar_resnet20', 'resnet50', 'package.module:Net')
    """
    name, _, tag = arch.partition(".")
    return name if name in TIMM and re.fullmatch(r"\w+", tag) else ALIASES.get(arch, arch)


def classifier(recipe: Recipe, *, named: str | None = None) -> tuple[str, ...] | None:
    """Return the path of the layer whose outputs are the classes, None where the network does not say.

    Args:
      recipe: of `recipe`.
      named: as for `from_recipe`.

    >>> classifier(recipe("vgg16")), classifier(recipe("squeezenet1_1"))
    (('classifier_6',), ('classifier_1',))
    """
    kind = _kind(recipe, named)
    found = own.head_of(_module(recipe, kind, None))
    if found is None and recipe.arch in ARCHS and hasattr(kind, "classifier"):
        return (kind.classifier,)  # a layer whose outputs go through more before they are logits
    return found


def known(arch: str) -> Arch:
    """Return what the registry knows of a network, by one of its names.

    Raises:
      ValueError: unknown name.

    >>> known("resnet20").layout
    'CIFAR (akamaster)'
    """
    found = ARCHS.get(canonical(arch))
    if found is None:
        raise ValueError(_unknown(arch))
    return found


def recipe(
    arch: str,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    mean: Any = None,
    std: Any = None,
    preprocess: Preprocess | None = None,
    **fields: Any,
) -> Recipe:
    """Return the recipe of a network, with its usual settings where none are given.

    Args:
      arch: one of `names`, an alias of one, or ``package.module:NAME`` of one's own: a class of Linen or NNX
        modules, or a function that returns such a module.
      num_classes: C; needed for a module of one's own.
      input_shape: (height, width, channels) in pixels; needed for a module of one's own.
      mean, std: per-channel normalisation of inputs in [0, 1]; 0 and 1 for none.
      preprocess: how pictures of other sizes are made to fit; default: the network's usual way,
        for a module of one's own the shorter side resized to the input's, then its middle.
      **fields: further arguments of the architecture in place of its usual ones, plain JSON.

    Raises:
      ValueError: unknown name, or an argument out of range.

    >>> recipe("cifar_resnet20", num_classes=100).kwargs
    (('input_shape', (32, 32, 3)), ('num_classes', 100))
    """
    arch = canonical(arch)
    usual = None if ":" in arch else known(arch)
    if usual is None:
        if num_classes is None or input_shape is None:
            raise ValueError(f"{arch} is not one of ours: give num_classes and input_shape")
    else:
        num_classes = usual.num_classes if num_classes is None else num_classes
        input_shape = usual.input_shape if input_shape is None else input_shape
        if mean is None and std is None:
            mean, std = usual.mean, usual.std
    _validate.positive_int("num_classes", num_classes)
    shape = tuple(int(size) for size in input_shape)  # type: ignore[union-attr]
    if len(shape) != 3 and usual is not None:
        raise ValueError(f"input_shape must be (height, width, channels); got {shape}")
    if preprocess is None and len(shape) == 3:
        share, resample = (1.0, "bilinear") if usual is None else (usual.crop, usual.resample)
        preprocess = Preprocess(resize=round(min(shape[:2]) / share), crop=(shape[0], shape[1]), resample=resample)
    return Recipe(
        arch=arch,
        kwargs=tuple(sorted((fields | {"input_shape": shape, "num_classes": int(num_classes)}).items())),  # type: ignore[arg-type]
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
    named: str | None = None,
) -> Model:
    """Build a network from its recipe and exactly one source of weights.

    Args:
      recipe: of `recipe`, a checkpoint or a file.
      variables: Linen variables, ``{"params": ..., "batch_stats": ...}``, or ``params`` and state of an NNX module.
      key: random key for fresh weights.
      abstract: shapes only (`jax.ShapeDtypeStruct`), to be filled by a loader.
      named: the function of one's own that may be called, ``package.module:factory``: a recipe may be a stranger's,
        and by its word alone only classes of Flax modules are. For a loader:
        ``functools.partial(from_recipe, named="package.module:factory")``.

    Raises:
      ValueError: an unknown network, none or several sources, variables that do not fit, a function that is not
        ``named``, or one that takes other arguments than ``num_classes``, ``input_shape`` (height, width, channels),
        ``rngs`` (`flax.nnx.Rngs`) and the recipe's further ones, raises, or returns something else.

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
        inside = dataclasses.replace(recipe, wrappers=())
        return wrappers.rebuild(from_recipe(inside, abstract=True, named=named), recipe)
    module, kwargs = _module(recipe, _kind(recipe, named), key), dict(recipe.kwargs)
    if isinstance(module, nnx.Module):
        return own.nnx_model(module, recipe, variables=variables, abstract=abstract)
    input_shape = tuple(kwargs["input_shape"])
    init = jax.jit(LinenInit(module, input_shape))
    try:
        params, state = init(key) if key is not None else jax.eval_shape(init, jax.random.key(0))
    except Exception as error:  # a recipe may be a stranger's, and a network may raise anything
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise ValueError(f"the network {recipe.arch} cannot be built for {input_shape}: {reason}") from error

    def build(variables: Mapping[str, Any]) -> Model:
        return from_linen(
            module,
            variables,
            input_shape=input_shape,
            num_classes=kwargs["num_classes"],
            mean=recipe.mean,
            std=recipe.std,
            head=own.head_of(module),
            recipe=recipe,
        )

    model = build({"params": params, **state})
    return model if variables is None else own.same_arrays(build(variables), model)


def _kind(recipe: Recipe, named: str | None) -> Any:
    """Return the class or function of a network; raise ValueError unless its recipe has what every network needs."""
    fields = dict(recipe.kwargs)
    for name in ("input_shape", "num_classes"):
        if name not in fields:
            raise ValueError(f"the recipe of {recipe.arch} lacks {name}")
    shape = fields["input_shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"the recipe of {recipe.arch}: input_shape must be whole numbers of at least 1; got {shape!r}")
    if math.prod(shape) > _MOST_INPUTS:
        raise ValueError(f"the recipe of {recipe.arch}: an input of {shape} has more than {_MOST_INPUTS:,} values")
    if type(fields["num_classes"]) is not int:
        raise ValueError(f"the recipe of {recipe.arch}: num_classes must be a number; got {fields['num_classes']!r}")
    if fields["num_classes"] > _MOST_CLASSES:
        many = f"{fields['num_classes']:,} classes, more than {_MOST_CLASSES:,}"
        raise ValueError(f"a {recipe.arch} of {many}: labels are 0, 1, 2, ...")
    if recipe.arch in ARCHS:
        return ARCHS[recipe.arch].network
    if ":" not in recipe.arch:
        raise ValueError(_unknown(recipe.arch))
    return own.find(recipe.arch, named)


def _module(recipe: Recipe, kind: Any, key: Array | None) -> nn.Module | nnx.Module:
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return _linen(recipe, kind)
    return own.build(kind, recipe, key)


def _linen(recipe: Recipe, kind: Any) -> nn.Module:
    usual = ARCHS[recipe.arch].fields if recipe.arch in ARCHS else {}
    fields = {name: value for name, value in recipe.kwargs if name != "input_shape"}
    try:
        layers = int(np.sum([np.sum(fields.get(name, 0)) for name in _LOOPS])) if recipe.arch in ARCHS else 0
        module: nn.Module = kind(**{**usual, **fields})
    except Exception as error:
        raise ValueError(f"the recipe of {recipe.arch} does not fit it: {error}") from None
    if layers > _MOST_LAYERS:
        raise ValueError(f"the recipe of {recipe.arch} is of {layers:,} layers, more than {_MOST_LAYERS:,}")
    return module


def _unknown(arch: str) -> str:
    close = difflib.get_close_matches(arch, [*ARCHS, *ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(ARCHS)}"
    return f"unknown network {arch!r}; {hint}"

"""Networks of the user's own, by ``package.module:Class`` or ``package.module:factory``: Linen or NNX.

A recipe may come from a stranger's checkpoint. By itself it has nothing called
but a class of Flax modules, with plain JSON as arguments; a function is called
only where the user has named it, too.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from jaxunlearn import _tree
from jaxunlearn._types import Array, Model, Recipe
from jaxunlearn.adapters import from_nnx
from jaxunlearn.adapters.linen import hashable

_MODULES = nn.Module | nnx.Module
_ABSENT = object()


def find(arch: str, named: str | None = None) -> Any:
    """Import ``package.module:Class`` or ``package.module:factory``.

    Args:
      arch: the name that a recipe has.
      named: the name that the user has given; a function is found under no other.

    Raises:
      ValueError: it cannot be imported, or is neither a class of Flax modules nor such a function.
    """
    module_name, _, name = arch.partition(":")
    no_class = f"{arch!r} is not a class of Linen modules or NNX modules"
    top, *steps = module_name.split(".")
    if arch != named and (top in sys.stdlib_module_names or "__main__" in steps):
        raise ValueError(no_class)  # some of these do something when they are imported
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, name, _ABSENT)
    except SystemExit:
        raise ValueError(f"cannot import the network {arch!r}: it ends the program") from None
    except Exception as error:  # the module's own code runs, and may raise anything
        raise ValueError(f"cannot import the network {arch!r}: {_reason(error)}") from None
    if found is _ABSENT:
        close = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"cannot import the network {arch!r}: {module_name} has no {name!r}{hint}")
    if isinstance(found, type):
        if not issubclass(found, _MODULES):
            raise ValueError(no_class)
    elif isinstance(found, _MODULES) or not callable(found):
        what = f"a {type(found).__name__}" + (", built already" if isinstance(found, _MODULES) else "")
        raise ValueError(f"{arch!r} is {what}: name a class of Linen or NNX modules, or a function that returns one")
    elif arch != named:
        raise ValueError(
            f"{arch!r} is a function, which is called only where you name it: --model {arch} "
            f"(in Python, models.from_recipe(..., named={arch!r}))"
        )
    return found


def build(kind: Any, recipe: Recipe, key: Array | None) -> nn.Module | nnx.Module:
    """Return what a class of NNX modules or a function makes: a Linen module, or an NNX module with its weights.

    A class is called with ``num_classes``, ``rngs`` and, if it takes it,
    ``input_shape``; a function with those of the three that are among its
    parameters; both with the recipe's further arguments.

    Args:
      kind: of `find`.
      recipe: with ``num_classes`` and ``input_shape``.
      key: what the weights are drawn from; None: shapes only, where ``rngs`` is taken.

    Raises:
      ValueError: it takes other arguments, raises, or returns something else.
    """
    arch, fields = recipe.arch, dict(recipe.kwargs)
    is_class = isinstance(kind, type)
    try:
        signature = inspect.signature(kind.__init__ if is_class else kind)
        taken = signature.parameters
        given = {n: v for n, v in fields.items() if n in taken or n not in ("num_classes", "input_shape")}
        rngs = ["rngs"] if is_class or "rngs" in taken else []
        given |= {"num_classes": fields["num_classes"]} if is_class else {}
        signature.bind(*([None] if is_class else []), **given, **dict.fromkeys(rngs))
    except (TypeError, ValueError) as error:  # the latter of builtins, which do not say what they take
        text = f"the recipe of {arch} does not fit it" if is_class else f"{arch} cannot be called with {_names(fields)}"
        raise ValueError(f"{text}: {error}") from None
    seed = jax.random.key(0) if key is None else key
    made: list[Any] = []

    def make() -> Any:
        made.append(kind(**given, **{name: nnx.Rngs(seed) for name in rngs}))
        return made[-1] if isinstance(made[-1], nnx.Module) else ()

    try:
        module = nnx.eval_shape(make) if rngs and key is None else make()
    except (Exception, SystemExit) as error:
        shape = tuple(fields["input_shape"])
        raise ValueError(f"the network {arch} cannot be built for {shape}: {_reason(error)}") from error
    if isinstance(module, nnx.Module):
        return module
    if not isinstance(made[-1], nn.Module):
        raise ValueError(f"{arch} returned a {type(made[-1]).__name__}, not a Linen module or an NNX module")
    try:
        return hashable(made[-1])
    except TypeError as error:
        raise ValueError(f"the network of {arch}: {error}") from None


def nnx_model(module: nnx.Module, recipe: Recipe, *, variables: Mapping[str, Any] | None, abstract: bool) -> Model:
    """Return a model of an NNX module of `build`: with its own weights, with given ones, or with shapes only.

    Args:
      module: of `build`.
      recipe: what it was built from.
      variables: ``{"params": ..., **model_state}`` as of `jaxunlearn.adapters.from_nnx`, or None.
      abstract: shapes only.

    Raises:
      ValueError: it cannot be applied, or the variables are another network's.
    """
    fields = dict(recipe.kwargs)
    model = from_nnx(
        module,
        input_shape=tuple(fields["input_shape"]),
        num_classes=fields["num_classes"],
        mean=recipe.mean,
        std=recipe.std,
        head=head_of(module),
        recipe=recipe,
    )
    if variables is None:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model) if abstract else model
    state = {name: value for name, value in variables.items() if name != "params"}
    return same_arrays(model.replace(params=variables.get("params", {}), model_state=state), model)


def same_arrays(model: Model, like: Model) -> Model:
    """Return a model whose arrays have the paths and shapes of another's.

    Raises:
      ValueError: they have not; the first that differs is named.
    """
    have, need = (_tree.flatten_paths({"params": m.params, "model_state": m.model_state}) for m in (model, like))
    for path in sorted(have.keys() | need.keys()):
        shapes = [np.shape(tree[path]) if path in tree else "absent" for tree in (have, need)]
        if shapes[0] != shapes[1]:
            arch = "the network" if like.spec.recipe is None else like.spec.recipe.arch
            raise ValueError(f"the variables are not those of {arch}: {path} is {shapes[0]}, there {shapes[1]}")
    return model


def head_of(kind: Any) -> tuple[str, ...] | None:
    """Return the path of the classifier that a network names by its attribute ``head``, such as ``"layers/2"``."""
    name = getattr(kind, "head", None)
    return tuple(name.split("/")) if isinstance(name, str) else None


def _names(fields: Mapping[str, Any]) -> str:
    more = [name for name in fields if name not in ("num_classes", "input_shape")]
    return ", ".join(["num_classes", "input_shape", "rngs", *more])


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).split("\n", 1)[0] or type(error).__name__

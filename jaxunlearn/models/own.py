"""Networks of the user's own, by ``package.module:Class``: Linen or NNX.

A recipe may come from a stranger's checkpoint, so nothing but a class of Flax
modules is called, with plain JSON as arguments.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from jaxunlearn import _tree
from jaxunlearn._types import Array, Model, Recipe
from jaxunlearn.adapters import from_nnx


def find(arch: str) -> type[nn.Module] | type[nnx.Module]:
    """Import ``package.module:Class``.

    Raises:
      ValueError: it cannot be imported, or is no class of Flax modules.
    """
    module_name, _, class_name = arch.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except SystemExit:
        raise ValueError(f"cannot import the network {arch!r}: it ends the program") from None
    except Exception as error:  # the module's own code runs, and may raise anything
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise ValueError(f"cannot import the network {arch!r}: {reason}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module | nnx.Module)):
        raise ValueError(f"{arch!r} is not a class of Linen modules or NNX modules")
    return found


def nnx_model(kind: Any, recipe: Recipe, *, variables: Mapping[str, Any] | None, key: Array | None) -> Model:
    """Build an NNX network: with given variables, with fresh weights, or with shapes only.

    The class is called as ``kind(num_classes=..., rngs=...)`` and, if it takes
    it, ``input_shape=``, with the recipe's further arguments.

    Args:
      kind: of `find`.
      recipe: with ``num_classes`` and ``input_shape``.
      variables: ``{"params": ..., **model_state}`` as of `jaxunlearn.adapters.from_nnx`, or None.
      key: random key for fresh weights, or None.

    Raises:
      ValueError: the arguments do not fit, or no network comes of them.
    """
    fields = dict(recipe.kwargs)
    input_shape, count = tuple(fields["input_shape"]), fields["num_classes"]
    if "input_shape" not in inspect.signature(kind.__init__).parameters:
        del fields["input_shape"]
    seed = jax.random.key(0) if key is None else key

    def make() -> nnx.Module:
        return kind(**fields, rngs=nnx.Rngs(seed))

    try:
        module = nnx.eval_shape(make) if key is None else make()
    except TypeError as error:
        raise ValueError(f"the recipe of {recipe.arch} does not fit it: {error}") from None
    except Exception as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise ValueError(f"the network {recipe.arch} cannot be built for {input_shape}: {reason}") from error
    model = from_nnx(
        module,
        input_shape=input_shape,
        num_classes=count,
        mean=recipe.mean,
        std=recipe.std,
        head=head_of(kind),
        recipe=recipe,
    )
    if variables is None:
        return model
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

"""Linen modules as functions of the seam."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn._types import Array, Model, ModelSpec, Params, Recipe
from jaxunlearn.adapters.common import (
    check_head,
    check_normalisation,
    check_spec,
    checked,
    mode_arguments,
    standardise,
)

_TRANSIENT = ("intermediates", "perturbations")


@dataclasses.dataclass(frozen=True)
class LinenApply:
    """A Linen module as a function of the seam; equal modules make equal functions."""

    module: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(
        self,
        params: Params,
        model_state: Params,
        x: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Params]:
        x = standardise(x, self.mean, self.std)
        variables, mode = {"params": params, **model_state}, mode_arguments(self.module, train)
        apply: Any = self.module.apply
        rngs = None if rngs is None else dict(rngs)
        if not train or not model_state:
            return apply(variables, x, rngs=rngs, **mode), model_state
        logits, updated = apply(variables, x, rngs=rngs, mutable=list(model_state), **mode)
        return logits, {name: updated.get(name, model_state[name]) for name in model_state}


@dataclasses.dataclass(frozen=True)
class LinenTaps:
    """Inner activations of a Linen module in eval mode.

    The result maps the path of each submodule to its output and the path
    followed by ``:in`` to its first input; a further call of the same submodule
    is marked ``#1``, ``#2``. Features are the input of the head.
    """

    apply_fn: LinenApply

    def __call__(self, params: Params, model_state: Params, x: Array) -> dict[str, Array]:
        taps: dict[str, Array] = {}
        calls: dict[str, int] = {}

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            path = "/".join(context.module.path)
            if path and context.method_name == "__call__":
                nth = calls.get(path, 0)
                calls[path] = nth + 1
                name = f"{path}#{nth}" if nth else path
                for key, value in ((f"{name}:in", args[0] if args else None), (name, out)):
                    if isinstance(value, jax.Array):
                        taps[key] = value
            return out

        with nn.intercept_methods(record):
            self.apply_fn(params, model_state, jnp.asarray(x), train=False)
        return taps


@dataclasses.dataclass(frozen=True)
class LinenInit:
    """Fresh weights of a Linen module: ``init_fn(key) -> (params, model_state)``."""

    module: nn.Module
    input_shape: tuple[int, ...]

    def __call__(self, key: Array) -> tuple[Params, Params]:
        x = jnp.zeros((1, *self.input_shape), jnp.float32)
        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        init: Any = self.module.init
        return _split_variables(init(keys, x, **mode_arguments(self.module, False)))


def from_linen(
    module: nn.Module,
    variables: Mapping[str, Any],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    box: tuple[float, float] = (0.0, 1.0),
    mean: Any = None,
    std: Any = None,
    head: tuple[str, ...] | None = None,
    recipe: Recipe | None = None,
) -> Model:
    """Make a model of a Linen module and its variables.

    The module is called as ``module(x)``, with whichever of ``train``,
    ``training``, ``is_training``, ``deterministic``, ``use_running_average`` its
    ``__call__`` takes. Collections other than ``params`` become ``model_state``:
    updated in train mode, handed back untouched in eval mode.

    Args:
      module: an unbound Linen module that maps (batch, *input_shape) to logits (batch, C).
      variables: of ``module.init``; arrays or `jax.ShapeDtypeStruct`.
      input_shape: of one input, without the batch axis.
      num_classes: C.
      box: (low, high), range of the inputs before normalisation.
      mean, std: per-channel normalisation put inside the network, or None.
      head: path of the classifier layer in ``params``.
      recipe: how a checkpoint rebuilds the network.

    Raises:
      ValueError: no ``params``, mean and std that do not fit, a head that is not
        there, weights that do not fit the module, or logits that are not (batch, C).
      TypeError: not a Linen module, or one that cannot be hashed.

    >>> net = nn.Dense(3)
    >>> variables = net.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> model = from_linen(net, variables, input_shape=(4,), num_classes=3)
    >>> model(jnp.ones((2, 4))).shape
    (2, 3)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen.Module; got {type(module).__name__}")
    input_shape, box = check_spec(input_shape, num_classes, box)
    mean, std = check_normalisation(mean, std, input_shape)
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params'; got collections {sorted(variables)}")
    params, model_state = _split_variables(variables)
    module = hashable(module)
    apply_fn = LinenApply(module, mean, std)
    spec = ModelSpec(
        num_classes=num_classes,
        input_shape=input_shape,
        box=box,
        head=check_head(head, params),
        taps_fn=LinenTaps(apply_fn),
        init_fn=LinenInit(module, input_shape),
        recipe=recipe,
    )
    return checked(Model(params=params, model_state=model_state, apply_fn=apply_fn, spec=spec))


def _split_variables(variables: Mapping[str, Any]) -> tuple[Params, Params]:
    """Split Linen variables into plain dicts of parameters and of everything that persists beside them."""
    plain = nn.meta.unbox(flax.core.unfreeze(dict(variables)))
    params = dict(plain.get("params", {}))
    return params, {name: dict(plain[name]) for name in sorted(plain) if name not in ("params", *_TRANSIENT)}


def hashable(module: nn.Module) -> nn.Module:
    """Return the module with lists in its fields as tuples; raise TypeError where that does not make it hashable."""

    def frozen(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return hashable(value)
        return tuple(map(frozen, value)) if isinstance(value, list | tuple) and type(value) in (list, tuple) else value

    fields = [f.name for f in dataclasses.fields(module) if f.init and f.name not in ("parent", "name")]  # type: ignore[arg-type]
    changed = {name: frozen(getattr(module, name)) for name in fields}
    changed = {name: value for name, value in changed.items() if value is not getattr(module, name)}
    module = module.clone(**changed) if changed else module
    try:
        hash(module)
    except TypeError:
        raise TypeError(
            f"{type(module).__name__} cannot be hashed: give it fields that can (tuples, no arrays)"
        ) from None
    return module

"""Join a Flax network to the seam: Linen and NNX modules become `Model`.

The functions made here are frozen dataclasses: two equal networks compare and
hash equal, so that a reloaded model does not make `jax.jit` trace again.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _tree, _validate
from jaxunlearn._types import ApplyFn, Array, Model, ModelSpec, Params, Recipe

#: Arguments that switch a module between training and evaluation -> the value of each in train mode.
_MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
_TRANSIENT = ("intermediates", "perturbations")


@dataclasses.dataclass(frozen=True)
class Normalised:
    """An apply function whose inputs are first shifted by a mean and divided by a deviation."""

    apply_fn: ApplyFn
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self,
        params: Params,
        model_state: Params,
        x: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Params]:
        x = _standardise(x, self.mean, self.std)
        return self.apply_fn(params, model_state, x, train=train, rngs=rngs)


def normalised(apply_fn: ApplyFn, mean: Any, std: Any) -> Normalised:
    """Put the normalisation ``(x - mean) / std`` inside an apply function.

    Args:
      apply_fn: a function of the seam that expects normalised inputs.
      mean, std: one number per channel (the last axis of ``x``), std above 0.

    Raises:
      ValueError: lengths differ, or a value is not finite, or a std is not positive.

    >>> identity = lambda params, state, x, *, train=False, rngs=None: (x, state)
    >>> f = normalised(identity, (0.5, 0.5), (0.25, 0.5))
    >>> f({}, {}, jnp.ones((1, 2)))[0].tolist()
    [[2.0, 1.0]]
    """
    checked_mean, checked_std = _check_normalisation(mean, std, None)
    if checked_mean is None or checked_std is None:
        raise ValueError("mean and std must both be given; got None")
    return Normalised(apply_fn, checked_mean, checked_std)


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
        x = _standardise(x, self.mean, self.std)
        variables, mode = {"params": params, **model_state}, _mode(self.module, train)
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
            self.apply_fn(params, model_state, x, train=False)
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
        return _split_variables(init(keys, x, **_mode(self.module, False)))


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
    input_shape, box = _check_spec(input_shape, num_classes, box)
    mean, std = _check_normalisation(mean, std, input_shape)
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params'; got collections {sorted(variables)}")
    params, model_state = _split_variables(variables)
    module = _hashable(module)
    apply_fn = LinenApply(module, mean, std)
    spec = ModelSpec(
        num_classes=num_classes,
        input_shape=input_shape,
        box=box,
        head=_check_head(head, params),
        taps_fn=LinenTaps(apply_fn),
        init_fn=LinenInit(module, input_shape),
        recipe=recipe,
    )
    return _checked(Model(params=params, model_state=model_state, apply_fn=apply_fn, spec=spec))


def _mode(module: nn.Module, train: bool) -> dict[str, bool]:
    """Return the arguments of the module's ``__call__`` that choose train or eval mode."""
    taken = inspect.signature(type(module).__call__).parameters
    return {name: in_train is train for name, in_train in _MODE_ARGUMENTS.items() if name in taken}


def _split_variables(variables: Mapping[str, Any]) -> tuple[Params, Params]:
    """Split Linen variables into plain dicts of parameters and of everything that persists beside them."""
    plain = nn.meta.unbox(flax.core.unfreeze(dict(variables)))
    params = dict(plain.get("params", {}))
    return params, {name: dict(plain[name]) for name in sorted(plain) if name not in ("params", *_TRANSIENT)}


def _hashable(module: nn.Module) -> nn.Module:
    """Return the module with lists in its fields as tuples; raise TypeError where that does not make it hashable."""

    def frozen(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return _hashable(value)
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


def _standardise(x: Array, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Array:
    if mean is None or std is None:
        return x
    dtype = jnp.result_type(x, jnp.float32) if not jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
    shape = (1,) * (x.ndim - 1) + (len(mean),)
    return (x - np.asarray(mean, dtype).reshape(shape)) / np.asarray(std, dtype).reshape(shape)


def _check_normalisation(
    mean: Any, std: Any, input_shape: tuple[int, ...] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ValueError(f"mean and std go together; got mean={mean}, std={std}")
    mean, std = (tuple(np.ravel(np.asarray(value, np.float64)).tolist()) for value in (mean, std))
    if len(mean) != len(std):
        raise ValueError(f"mean and std must have one length; got {len(mean)} and {len(std)}")
    if input_shape is not None and len(mean) != input_shape[-1]:
        raise ValueError(f"mean must have one value for each of the {input_shape[-1]} channels; got {mean}")
    _validate.in_range("mean", mean)
    _validate.in_range("std", std)
    if min(std) <= 0:
        raise ValueError(f"std must be above 0; got {std}")
    return mean, std


def _check_spec(input_shape: Any, num_classes: Any, box: Any) -> tuple[tuple[int, ...], tuple[float, float]]:
    _validate.positive_int("num_classes", num_classes)
    input_shape = tuple(int(n) for n in input_shape)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"input_shape must be sizes of at least 1, without the batch axis; got {input_shape}")
    low, high = (float(value) for value in box)
    if not low < high:
        raise ValueError(f"box must be (low, high) with low < high; got {box}")
    return input_shape, (low, high)


def _check_head(head: Any, params: Params) -> tuple[str, ...] | None:
    if head is None:
        return None
    node: Any = params
    for name in head:
        if not isinstance(node, Mapping) or name not in node:
            known = ", ".join(sorted({path.rsplit("/", 1)[0] for path in _tree.flatten_paths(dict(params))}))
            raise ValueError(f"head must be the path of a layer in params; got {head!r}, there are {known}")
        node = node[name]
    return tuple(head)


def _checked(model: Model) -> Model:
    """Return the model after an abstract forward pass has shown that its parts fit together."""
    shape = model.spec.input_shape
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    try:
        logits, _ = jax.eval_shape(model.apply_fn, model.params, model.model_state, x)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"the network cannot be applied to inputs of shape (batch, {_join(shape)}): {reason}"
        ) from error
    expected = (2, model.spec.num_classes)
    if getattr(logits, "shape", None) != expected:
        got = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(f"logits of 2 inputs must have shape {expected} (num_classes={expected[1]}); got {got}")
    return model


def _join(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))

"""What adapters share: normalisation, the train/eval switch, and a check that the parts fit together."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _tree, _validate
from jaxunlearn._types import ApplyFn, Array, Model, Params

#: Arguments that switch a module between training and evaluation -> the value of each in train mode.
_MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


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
        x = standardise(x, self.mean, self.std)
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
    checked_mean, checked_std = check_normalisation(mean, std, None)
    if checked_mean is None or checked_std is None:
        raise ValueError("mean and std must both be given; got None")
    return Normalised(apply_fn, checked_mean, checked_std)


def mode_arguments(module: Any, train: bool) -> dict[str, bool]:
    """Return the arguments of the module's ``__call__`` that choose train or eval mode."""
    taken = inspect.signature(type(module).__call__).parameters
    return {name: in_train is train for name, in_train in _MODE_ARGUMENTS.items() if name in taken}


def standardise(x: Array, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Array:
    if mean is None or std is None:
        return x
    dtype = jnp.result_type(x, jnp.float32) if not jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
    shape = (1,) * (x.ndim - 1) + (len(mean),)
    return (x - np.asarray(mean, dtype).reshape(shape)) / np.asarray(std, dtype).reshape(shape)


def check_normalisation(
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
        need = f"one value for each of the {input_shape[-1]} channels"
        raise ValueError(f"mean must have {need}; got {mean}: give mean and std")
    _validate.in_range("mean", mean)
    _validate.in_range("std", std)
    if min(std) <= 0:
        raise ValueError(f"std must be above 0; got {std}")
    return mean, std


def check_spec(input_shape: Any, num_classes: Any, box: Any) -> tuple[tuple[int, ...], tuple[float, float]]:
    _validate.positive_int("num_classes", num_classes)
    input_shape = tuple(int(n) for n in input_shape)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"input_shape must be sizes of at least 1, without the batch axis; got {input_shape}")
    low, high = (float(value) for value in box)
    if not low < high:
        raise ValueError(f"box must be (low, high) with low < high; got {box}")
    return input_shape, (low, high)


def check_head(head: Any, params: Params) -> tuple[str, ...] | None:
    if head is None:
        return None
    node: Any = params
    for name in head:
        if not isinstance(node, Mapping) or name not in node:
            known = ", ".join(sorted({path.rsplit("/", 1)[0] for path in _tree.flatten_paths(dict(params))}))
            raise ValueError(f"head must be the path of a layer in params; got {head!r}, there are {known}")
        node = node[name]
    return tuple(head)


def checked(model: Model) -> Model:
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

"""Eval-mode passes over many inputs in batches of one size, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _devices, _progress, _repeat
from jaxunlearn._ahead import ahead
from jaxunlearn._types import ApplyFn, Array, Model, Params


@partial(jax.jit, static_argnums=0)
def _forward(apply_fn: ApplyFn, params: Params, model_state: Params, x: Array) -> Array:
    return apply_fn(params, model_state, x, train=False)[0]


def logits(model: Model, x: Any, *, batch_size: int | None = None, label: str = "evaluating") -> np.ndarray:
    """Return eval-mode logits, (n, C) float32 on the host: of a million images and a thousand classes 4 GB.

    The last batch is padded, a single one to a power of two: few compilations serve any n. Where x is
    sharded over devices, each takes its own rows and every process gets all logits.

    Args:
      model: the classifier.
      x: (n, *input_shape), array or anything whose slices become one.
      batch_size: rows a pass on each device; None: by device, on CPU few, since one small pass a core is fastest.
      label: what progress is reported as.
    """
    return _passed(model, x, batch_size, label, lambda part: part)


def predictions(model: Model, x: Any, *, batch_size: int | None = None, label: str = "evaluating") -> np.ndarray:
    """Return the label that each input is given, (n,) int32; -1 where its logits hold a NaN or infinity.

    As `logits`, of which no more than a batch a core is held here.
    """
    return _passed(model, x, batch_size, label, _labels)


def _labels(part: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(part).all(axis=1), part.argmax(axis=1), -1).astype(np.int32)


def _passed(
    model: Model, x: Any, batch_size: int | None, label: str, of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return a function of the logits of each batch, joined."""
    n = len(x)
    if batch_size is None:
        batch_size = 25 if jax.default_backend() == "cpu" else 250
    split = _devices.split_of(x)
    if split is not None:  # not in threads: every process must do the same in the same order
        each = n // _devices.parts(split)
        chunks = _repeat.split(x, size=_devices.parts(split) * min(batch_size, each))
        found = []
        for c in range(len(chunks)):
            found.append(_forward(model.apply_fn, model.params, model.model_state, _repeat.pick(chunks, c)))
            _progress.report(label, min((c + 1) * chunks.shape[1], n), n)
        return of(_devices.host(_repeat.join(found, n=n)))
    size = _repeat.chunk_size(max(n, 1), batch_size)

    def some(rows: Any) -> np.ndarray:
        batch = jnp.asarray(rows)
        if len(batch) < size:
            batch = jnp.pad(batch, [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1))
        return of(np.asarray(_forward(model.apply_fn, model.params, model.model_state, batch))[: len(rows)])

    out = of(np.zeros((0, model.spec.num_classes), np.float32))
    parts = ahead(some, (x[start : start + size] for start in range(0, n, size)))
    for start, part in zip(range(0, n, size), parts, strict=True):
        if start == 0:
            # Answers are copied into one array. Left where each batch made them, small blocks between large ones that a
            # pass takes and leaves, they keep the C library from using the large ones again: memory would grow with n.
            out = np.empty((n, *out.shape[1:]), np.result_type(out, part))
        out[start : start + size] = part
        _progress.report(label, min(start + size, n), n)
    return out

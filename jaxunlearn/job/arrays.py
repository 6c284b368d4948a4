"""Arrays as a data set with named instances, so that they are measured as every other one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxunlearn import _validate
from jaxunlearn._types import ModelSpec
from jaxunlearn.data import Source

NAME = "arrays"


def source_of(
    spec: ModelSpec,
    forget: Any,
    *,
    ids: Sequence[Any] | None = None,
    retain: Any = None,
    test: Any = None,
    class_names: Sequence[str] = (),
) -> Source:
    """Return a source whose first rows are the forget set, then the retain set, then the test set.

    Args:
      spec: what the inputs must fit.
      forget, retain, test: pairs ``(x, y)``; uint8 stands for 0..1 in steps of 1/255, as everywhere, where that is the
        network's box.
      ids: (k,) names of the forget instances; default their numbers.
      class_names: C names, or none.

    Raises:
      ValueError, TypeError: no pair, or arrays that do not fit the network or each other; ids that repeat.
    """
    given = {"forget": forget, "retain": retain, "test": test}
    pairs = {name: _pair(name, value, spec) for name, value in given.items() if value is not None}
    k, kept, tested = (len(pairs[name][1]) if name in pairs else 0 for name in given)
    names = [str(name) for name in (range(k) if ids is None else ids)]
    if len(names) != k:
        raise ValueError(f"ids must name each instance of the forget set; got {len(names)} for {k}")
    if len(class_names) not in (0, spec.num_classes):
        raise ValueError(f"class_names must have {spec.num_classes} names; got {len(class_names)}")
    names += [f"retain_{i}" for i in range(kept)] + [f"test_{i}" for i in range(tested)]
    splits = {"train": np.arange(k + kept)}
    if tested:
        splits["test"] = np.arange(k + kept, k + kept + tested)
    return Source(
        name=NAME,
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,  # type: ignore[arg-type]  # a network of vectors has no height and width
        class_names=tuple(map(str, class_names)) or None,
        ids=np.array(names),
        labels=np.concatenate([y for _, y in pairs.values()]).astype(np.int32),
        splits=splits,
        read=_Joined([x for x, _ in pairs.values()]),
        kept=True,
    )


class _Joined:
    """Several arrays read as one, without a copy of them."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self._arrays[0].shape[1:]), np.float32)
        which = np.searchsorted(self._ends, rows, side="right")
        for number, (array, end) in enumerate(zip(self._arrays, self._ends, strict=True)):
            here = which == number
            some = array[rows[here] - (end - len(array))]
            out[here] = some.astype(np.float32) / np.float32(255) if some.dtype == np.uint8 else some
        return out


def _pair(name: str, value: Any, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (x, y) of arrays; got {type(value).__name__}")
    x, y = (np.asarray(part) for part in value)
    if x.dtype == np.uint8:
        if tuple(spec.box) != (0.0, 1.0):
            raise ValueError(f"{name}.x has pixels of 0 to 255; give floats in the network's box {spec.box}")
        _validate.inputs(f"{name}.x", x[:0], spec)  # the shape; bytes cannot be out of range
    else:
        _validate.inputs(f"{name}.x", x, spec)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"{name}.y must be whole numbers, one an instance; got {y.dtype} of shape {y.shape}")
    _validate.same_length(name, {"x": x, "y": y})
    if not len(y):
        raise ValueError(f"{name} is empty: leave it out, or give at least one instance")
    _validate.labels(f"{name}.y", y, spec.num_classes)
    return x, y

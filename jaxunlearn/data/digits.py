"""scikit-learn's 1,797 handwritten digits: small, real, and shipped with a dependency."""

from __future__ import annotations

import functools

import numpy as np

from jaxunlearn.data._source import Source


@functools.cache
def open_digits() -> Source:
    """Open the digits: 8x8 grey images, values / 16, ids the row numbers in scikit-learn's order.

    Every seventh row (0, 7, 14, ...) is the test split, 257 images; the other
    1,540 are for training. Seven shares no factor with the order of the rows,
    which counts 0 to 9 over and over, so that both splits hold all classes.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits need scikit-learn: pip install 'jaxunlearn[data]'") from error

    bunch = load_digits()
    x = (bunch.images[..., None] / 16).astype(np.float32)
    rows = np.arange(len(x))
    is_test = rows % 7 == 0
    return Source(
        name="digits",
        num_classes=10,
        input_shape=(8, 8, 1),
        class_names=tuple(str(name) for name in bunch.target_names),
        ids=np.array([str(row) for row in rows]),
        labels=bunch.target.astype(np.int32),
        splits={"train": rows[~is_test], "test": rows[is_test]},
        read=x.__getitem__,
    )

"""A labelled image set with named instances, whatever it is stored in."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxunlearn._types import Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures in files become a data set of one size.

    Attributes:
      preprocess: how a picture of any size is made to fit, or None: all must have one size.
    """

    preprocess: Preprocess | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Images, labels and ids of one data set, addressed by row over all splits.

    Attributes:
      name: the spec it was opened from, such as ``tfds:cifar10``.
      num_classes: C; labels are 0..C-1.
      input_shape: (height, width, channels) of every image.
      class_names: one name a label, or None.
      ids: (n,) str, unique; what a forget set is named by.
      labels: (n,) int32.
      splits: rows of each split, ascending; always "train", "test" where there is one.
      read: ``read(rows) -> (len(rows), *input_shape)``, uint8 or floats in [0, 1].
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    ids: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    read: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        if len(self._by_id) < len(self.ids):
            values, counts = np.unique(self.ids, return_counts=True)
            raise ValueError(
                f"ids of {self.name} must not repeat; {str(values[counts.argmax()])!r} occurs {counts.max()} times"
            )

    def images(self, rows: Any) -> np.ndarray:
        """Return the images of some rows, (len(rows), H, W, C) float32 in [0, 1]."""
        pixels = self.read(np.asarray(rows, dtype=np.intp))
        if pixels.dtype == np.uint8:
            return pixels.astype(np.float32) / np.float32(255)
        return pixels.astype(np.float32, copy=False)

    def view(self, rows: Any) -> View:
        """Return rows as a sequence of images that are read when it is sliced."""
        return View(self, np.asarray(rows, dtype=np.intp))

    def class_name(self, label: int) -> str:
        """Return the name of a label, or the number where labels have no names."""
        return self.class_names[label] if self.class_names else str(label)

    def label_of(self, text: str, num_classes: int | None = None) -> int:
        """Return the label of a number below C (default the source's) or of a class name; raise ValueError else."""
        text, count = text.strip(), num_classes or self.num_classes
        if self.class_names and text in self.class_names:
            return self.class_names.index(text)
        if re.fullmatch(r"-?\d+", text):
            if 0 <= int(text) < count:
                return int(text)
            raise ValueError(f"label {text} is out of range: {self.name} has labels 0 to {count - 1}")
        known = f" or one of {', '.join(self.class_names[:12])}" if self.class_names else ""
        raise ValueError(f"no class {text!r} in {self.name}: give a label from 0 to {count - 1}{known}")

    def split_of(self, row: int) -> str:
        """Return the name of the split that holds a row."""
        return next(name for name, rows in self.splits.items() if row in rows)

    def row_of(self, text: str) -> int | None:
        """Return the row of an id, or None.

        Zeros before a closing number do not matter (``train_42`` is
        ``train_00042``); a plain number is the training id that ends in it.
        """
        row = self._by_id.get(text)
        if row is None and (key := _prefix_and_number(text)):
            row = self._by_number.get(key)
        return row

    @functools.cached_property
    def _by_id(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.ids.tolist())}

    @functools.cached_property
    def _by_number(self) -> dict[tuple[str, int], int]:
        rows: dict[tuple[str, int], int] = {}
        ambiguous = set()
        train = set(self.splits["train"].tolist())
        for text, row in self._by_id.items():
            if key := _prefix_and_number(text):
                for k in {key, ("", key[1])} if row in train else {key}:
                    if k in rows:
                        ambiguous.add(k)
                    rows[k] = row
        return {key: row for key, row in rows.items() if key not in ambiguous}


def _prefix_and_number(text: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.*?)(\d+)", text, re.ASCII)
    return (match[1], int(match[2])) if match else None


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Some rows of a source; slices are float32 images, so that a pass over it holds one batch in memory."""

    source: Source
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice) -> np.ndarray:
        return self.source.images(self.rows[index])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C), as the array would have it."""
        return (len(self.rows), *self.source.input_shape)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the images in order, ``batch_size`` at a time."""
        for start in range(0, len(self.rows), batch_size):
            yield self[start : start + batch_size]

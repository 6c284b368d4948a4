"""A labelled image set with named instances, whatever it is stored in."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxunlearn._types import Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures become a data set of the network's size, and what is known of its classes.

    Attributes:
      preprocess: how a picture of any size is made to fit, or None: all must have one size.
      adapts: whether images of ``npz:`` and ``tfds:`` that all have one size keep it, for a network yet to be built.
      channels: 1 or 3, or None: as the first picture has them.
      num_classes: C of the network, or None: the data decide.
      classes: the name of each output, in their order, or None.
      classes_from: what a message calls the place that they are from.
      flags: whether messages name flags of the command line, or arguments of Python.
      on_bad_image: "fail" raises for a picture that cannot be read; "skip" leaves it out, and looks at all first.
      labelled: False for pictures without classes: all get the label 0.
    """

    preprocess: Preprocess | None = None
    adapts: bool = False
    channels: int | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    classes_from: str = "--classes"
    flags: bool = True
    on_bad_image: Literal["fail", "skip"] = "fail"
    labelled: bool = True


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
      read: ``read(rows) -> (len(rows), *input_shape)``, uint8 or floats in [0, 1]; never asked for none.
      columns: further facts of every row, (n,) str each, for queries.
      files: where each picture lies, or None where they have no files of their own.
      archives: the files that hold many pictures each and were read for this, if there are such.
      skipped: why a row is in no split, by row.
      retain: rows to measure as the retain set in place of the rest of "train", or None.
      kept: whether images that were read stay in memory, so that reading them early costs nothing.
      notes: (name, text) pairs on how it was read, for the reader.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    ids: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    read: Callable[[np.ndarray], np.ndarray]
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    files: Sequence[Path | None] | None = None
    archives: tuple[Path, ...] = ()
    skipped: Mapping[int, str] = dataclasses.field(default_factory=dict)
    retain: np.ndarray | None = None
    kept: bool = False
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if len(self._by_id) < len(self.ids):
            values, counts = np.unique(self.ids, return_counts=True)
            raise ValueError(
                f"ids of {self.name} must not repeat; {str(values[counts.argmax()])!r} occurs {counts.max()} times"
            )

    def images(self, rows: Any) -> np.ndarray:
        """Return the images of some rows, (len(rows), H, W, C) float32 in [0, 1]."""
        rows = np.asarray(rows, dtype=np.intp)
        if not len(rows):
            return np.zeros((0, *self.input_shape), np.float32)
        pixels = self.read(rows)
        if pixels.dtype == np.uint8:
            images = pixels.astype(np.float32)
            images /= np.float32(255)  # in place: a split that a method needs whole is there once
            return images
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

    def split_of(self, row: int) -> str | None:
        """Return the name of the split that holds a row, or None where it was skipped."""
        return next((name for name, rows in self.splits.items() if row in rows), None)

    @property
    def filled(self) -> str:
        """The names of the splits that have instances, for messages."""
        return ", ".join(name for name, rows in self.splits.items() if len(rows))

    def retained(self, gone: Any) -> np.ndarray:
        """Return the rows of the retain set: all of it without those that are to be forgotten, ascending."""
        return np.setdiff1d(self.splits["train"] if self.retain is None else self.retain, gone)

    def row_of(self, text: str) -> int | None:
        """Return the row of an id, or None.

        Zeros before a closing number do not matter (``train_42`` is
        ``train_00042``); a plain number is the training id that ends in it. A
        file name stands for the id or the file that ends in it.
        """
        row = self._by_id.get(text)
        if row is None and (key := _prefix_and_number(text)):
            row = self._by_number.get(key)
        if row is None and len(found := self.rows_named(text)) == 1:
            row = found[0]
        return row

    def rows_named(self, text: str) -> list[int]:
        """Return the rows whose id or file ends in this path, however its letters are composed.

        Where some of them can be forgotten, or could were they not skipped, the others are not meant.
        """
        path = unicodedata.normalize("NFC", text)
        rows = self._by_file.get(path.rpartition("/")[2], [])
        files = [self.ids, *([self.columns["file"]] if "file" in self.columns else [])]

        def ends(row: int) -> bool:
            names = (unicodedata.normalize("NFC", str(column[row])) for column in files)
            return any(name == path or name.endswith("/" + path) for name in names)

        found = [row for row in rows if ends(row)]
        return [row for row in found if row in self._train or row in self.skipped] or found

    @functools.cached_property
    def _train(self) -> frozenset[int]:
        return frozenset(self.splits["train"].tolist())

    @functools.cached_property
    def _by_file(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for column in (self.ids, self.columns.get("file", self.ids)):
            for row, name in enumerate(column.tolist()):
                found = rows.setdefault(unicodedata.normalize("NFC", name).rpartition("/")[2], [])
                if not found or found[-1] != row:
                    found.append(row)
        return {name: sorted(set(found)) for name, found in rows.items()}

    @functools.cached_property
    def _by_id(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.ids.tolist())}

    @functools.cached_property
    def _by_number(self) -> dict[tuple[str, int], int]:
        rows: dict[tuple[str, int], int] = {}
        ambiguous = set()
        for text, row in self._by_id.items():
            if key := _prefix_and_number(text):
                for k in {key, ("", key[1])} if row in self._train else {key}:
                    if k in rows:
                        ambiguous.add(k)
                    rows[k] = row
        return {key: row for key, row in rows.items() if key not in ambiguous}


def _prefix_and_number(text: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.*?)(\d{1,18})", text, re.ASCII)
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

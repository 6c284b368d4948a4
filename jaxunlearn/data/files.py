"""From pictures, in files or stored otherwise, and what is said of them to a `Source`."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.labels import Order
from jaxunlearn.data.pictures import SUFFIXES, Content, Pictures, name_of


def source_of(
    *,
    name: str,
    contents: Callable[[np.ndarray], Sequence[Content]],
    name_of_row: Callable[[int], str],
    ids: Sequence[str],
    labels: np.ndarray,
    order: Order | None,
    split: Sequence[str],
    reading: Reading,
    columns: Mapping[str, np.ndarray] | None = None,
    faults: Mapping[int, str] | None = None,
    files: Sequence[Path] | None = None,
    archives: Sequence[Path] = (),
) -> Source:
    """Return a source of pictures.

    Args:
      name: the spec.
      contents: ``contents(rows)``, what each picture is read from.
      name_of_row: what a message calls a picture.
      ids, labels, split: of each row; labels are int.
      order: what the labels are; None where there are none.
      reading: how pictures are read.
      columns: further facts of each row.
      faults: what is known to be wrong with pictures before one is opened, by row.
      files: where each lies, if each is a file.
      archives: the files that hold many of them each.

    Raises:
      PictureError: a picture cannot be read (with ``on_bad_image="fail"`` only what shows without decoding).
      ValueError: no picture is left.
    """
    pictures = Pictures(contents, name_of_row, len(ids), reading)
    bad = dict(faults or {})
    if bad and reading.on_bad_image == "fail":
        raise pictures.error(bad)
    bad, notes = _left_out(name, pictures, name_of_row, len(ids), bad, reading)
    if order is not None:
        notes.insert(0, ("classes", order.how))
    return Source(
        name=name,
        num_classes=1 if order is None else order.num_classes,
        input_shape=pictures.shape,
        class_names=None if order is None else order.names,
        ids=np.array(ids, dtype=str),
        labels=labels.astype(np.int32),
        splits=splits_of(split, np.array(sorted(bad), dtype=np.intp)),
        read=pictures,
        columns=columns or {},
        files=files,
        archives=tuple(archives),
        skipped=bad,
        kept=pictures.keeps,
        notes=tuple(notes),
    )


def to_fit(shape: Sequence[int | None], reading: Reading) -> Reading | None:
    """Return how stored images are brought to the network's size, or None where they are taken as they are.

    They are where they have its size already: a recipe's larger resize before the crop is for photographs. Neither
    are they changed where their channels are no colours; whether they fit is then for others to say.

    Args:
      shape: (height, width, channels) of all; None for what differs among them.
      reading: what is known of the network.
    """
    if reading.preprocess is None or (reading.adapts and None not in shape):
        return None
    need = (*reading.preprocess.crop, reading.channels or shape[2] or 3)
    if tuple(shape) == need or shape[2] not in (None, 1, 3) or need[2] not in (1, 3):
        return None
    return dataclasses.replace(reading, channels=need[2])


def fitted(
    source: Source,
    contents: Callable[[np.ndarray], Sequence[Content]],
    name_of_row: Callable[[int], str],
    reading: Reading,
) -> Source:
    """Return a source with its images read as pictures in files are.

    Args:
      source: all but the images; its ``input_shape`` is theirs as they are stored.
      contents, name_of_row, reading: as of `source_of`.

    Raises:
      PictureError, ValueError: as `source_of`.
    """
    pictures = Pictures(contents, name_of_row, len(source.ids), reading)
    bad, notes = _left_out(source.name, pictures, name_of_row, len(source.ids), {}, reading)
    if reading.preprocess is not None:
        have, need = ("x".join(map(str, shape)) for shape in (source.input_shape, pictures.shape))
        have = "many sizes" if None in source.input_shape else have
        notes.insert(0, ("images", f"of {have}, brought to {need} as pictures in files are"))
    return dataclasses.replace(
        source,
        input_shape=pictures.shape,
        splits={name: np.setdiff1d(rows, list(bad)) for name, rows in source.splits.items()} if bad else source.splits,
        read=pictures,
        skipped=bad,
        kept=pictures.keeps,
        notes=tuple(notes),
    )


def _left_out(
    name: str,
    pictures: Pictures,
    name_of_row: Callable[[int], str],
    total: int,
    bad: dict[int, str],
    reading: Reading,
) -> tuple[dict[int, str], list[tuple[str, str]]]:
    """Return what is wrong with the pictures to leave out, by row, beside what is known, and a note of them."""
    if reading.on_bad_image == "skip":
        bad = bad | pictures.faults(np.setdiff1d(np.arange(total), list(bad)))
        if len(bad) == total:
            raise ValueError(f"{name}: none of {total} pictures can be read; {pictures.error(bad)}")
    if not bad:
        return bad, []
    first = "; ".join(f"{name_of_row(row)} {bad[row]}" for row in sorted(bad)[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    return bad, [("skipped", f"{len(bad):,} of {total:,} pictures: {first}{more}")]


def splits_of(split: Sequence[str], left_out: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of each split: "train" always, then "test", then others in the order of their names."""
    names = np.asarray(split, dtype=str)
    order = ["train", *sorted({str(name) for name in np.unique(names)} - {"train"}, key=lambda s: (s != "test", s))]
    return {name: np.setdiff1d(np.flatnonzero(names == name), left_out) for name in order}


def fault_of(path: Path, *, any_name: bool = False) -> str | None:
    """Return what is wrong with the file of a picture without opening it, or None.

    Args:
      path: of the file.
      any_name: whether its name may end as it likes.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8 (rename it)"
    if not any_name and path.suffix.lower() not in SUFFIXES:
        return f"is no picture by its name ({' '.join(SUFFIXES)})"
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(found.st_mode):
        return "is not a file"
    return "is empty" if found.st_size == 0 else None


def faults_of(paths: Sequence[Path], *, any_name: bool = False) -> dict[int, str]:
    """Return `fault_of` the paths that have one, by row."""
    found = ((row, fault_of(path, any_name=any_name)) for row, path in enumerate(paths))
    return {row: fault for row, fault in found if fault is not None}


def printable(name: str) -> str:
    """Return a file name that can be printed and written: bytes that are no UTF-8 escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def shown(path: Path) -> str:
    """Return a path as a message has it."""
    return name_of(printable(str(path)))

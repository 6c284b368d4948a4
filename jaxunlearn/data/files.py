"""From pictures in files and what is said of them to a `Source`."""

from __future__ import annotations

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

    Raises:
      PictureError: a picture cannot be read (with ``on_bad_image="fail"`` only what shows without decoding).
      ValueError: no picture is left.
    """
    pictures = Pictures(contents, name_of_row, len(ids), reading)
    bad = dict(faults or {})
    if bad and reading.on_bad_image == "fail":
        raise pictures.error(bad)
    if reading.on_bad_image == "skip":
        rest = np.setdiff1d(np.arange(len(ids)), list(bad))
        bad |= pictures.faults(rest)
        if len(bad) == len(ids):
            raise ValueError(f"{name}: none of {len(ids)} pictures can be read; {pictures.error(bad)}")
    notes: list[tuple[str, str]] = []
    if order is not None:
        notes.append(("classes", order.how))
    if bad:
        first = "; ".join(f"{name_of_row(row)} {bad[row]}" for row in sorted(bad)[:5])
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        notes.append(("skipped", f"{len(bad):,} of {len(ids):,} pictures: {first}{more}"))
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
        skipped=bad,
        kept=pictures.keeps,
        notes=tuple(notes),
    )


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

"""One source of several: what is to be forgotten, what is to be kept and what is to be measured on may lie apart."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from jaxunlearn.data._source import Source


def join(data: Source, *, retain: Source | None = None, test: Source | None = None) -> Source:
    """Return a source whose retain and test sets are of others.

    The ids of the others begin with ``retain:`` and ``test:``. The retain set is
    the split "train" of ``retain``, in place of what is left of ``data``'s; the
    test set is the split "test" of ``test``, or "train" where it has none. A
    picture of the retain set whose file is the same, byte for byte, as one of
    ``data`` is that one, so that it is not in both when it is to be forgotten.

    Raises:
      ValueError: images of another size than ``data``'s, or none.
    """
    splits = {name: rows for name, rows in data.splits.items() if test is None or name != "test"}
    parts, files = [(data, 0)], list(data.files or [None] * len(data.ids))
    ids, labels, notes = [data.ids], [data.labels], list(data.notes)
    columns = {name: [column] for name, column in data.columns.items()}
    skipped = dict(data.skipped)
    found: dict[str, np.ndarray] = {}
    for name, other in (("retain", retain), ("test", test)):
        if other is None:
            continue
        if other.input_shape != data.input_shape:
            have, need = ("x".join(map(str, source.input_shape)) for source in (other, data))
            raise ValueError(f"--{name}-data {other.name} has images of {have}, {data.name} of {need}")
        rows = other.splits["test"] if name == "test" and "test" in other.splits else other.splits["train"]
        if not len(rows):
            raise ValueError(f"--{name}-data {other.name} has no images in its split {'train'!r}")
        first = len(files)
        parts.append((other, first))
        ids.append(np.char.add(f"{name}:", other.ids.astype(str)))
        labels.append(other.labels)
        files += list(other.files or [None] * len(other.ids))
        for column, values in columns.items():
            values.append(other.columns.get(column, np.full(len(other.ids), "")))
        skipped |= {first + row: reason for row, reason in other.skipped.items()}
        notes += [(note, f"{other.name}: {text}") for note, text in other.notes if note in ("skipped", "images")]
        found[name] = rows + first
    if "retain" in found:
        same = _same(files, len(data.ids), found["retain"])
        found["retain"] = np.unique([same.get(row, row) for row in found["retain"].tolist()])
        if same:
            notes.append(("the same", f"{len(same):,} pictures of --retain-data are in {data.name}, too: counted once"))
    if "test" in found:
        splits["test"] = found["test"]
    return Source(
        name=data.name,
        num_classes=max(source.num_classes for source, _ in parts),
        input_shape=data.input_shape,
        class_names=data.class_names,
        ids=np.concatenate(ids),
        labels=np.concatenate(labels),
        splits=splits,
        read=_Parts(parts),
        columns={name: np.concatenate(values) for name, values in columns.items()},
        files=files,
        archives=data.archives,
        skipped=skipped,
        retain=found.get("retain"),
        kept=all(source.kept for source, _ in parts),
        notes=tuple(notes),
    )


class _Parts:
    """Read rows of several sources, as float32."""

    def __init__(self, parts: list[tuple[Source, int]]) -> None:
        self._parts = parts

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self._parts[0][0].input_shape), np.float32)
        for source, first in self._parts:
            here = (rows >= first) & (rows < first + len(source.ids))
            if here.any():
                out[here] = source.images(rows[here] - first)
        return out


def _same(files: list[Path | None], count: int, rows: np.ndarray) -> dict[int, int]:
    """Return which of some rows have the same file content as one of the first ``count``; only equal sizes are read."""
    first: dict[int, list[int]] = defaultdict(list)
    for row in range(count):
        if (size := _size(files[row])) is not None:
            first[size].append(row)
    digests: dict[bytes, int] = {}
    done: set[int] = set()
    same = {}
    for row in rows.tolist():
        size = _size(files[row])
        if size is None or size not in first:
            continue
        if size not in done:
            done.add(size)
            for other in first[size]:
                if (digest := _digest(files[other])) is not None:
                    digests.setdefault(digest, other)
        if (digest := _digest(files[row])) in digests:
            same[row] = digests[digest]  # type: ignore[index]
    return same


def _size(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_size
    except OSError:
        return None


def _digest(path: Path | None) -> bytes | None:
    try:
        return None if path is None else hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None

"""Which instances to forget, and which labels to give them instead, from one line of text."""

from __future__ import annotations

import csv
import difflib
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxunlearn.data._source import Source
from jaxunlearn.data.pictures import name_of
from jaxunlearn.data.table import read_table

#: Values of a column that are compared with one that is not there, to show first what it may be a slip of.
_FEW = 10_000


def parse_forget(spec: str, source: Source, *, seed: int) -> np.ndarray:
    """Return the rows of the training instances that a spec names.

    Args:
      spec: ids separated by commas (``36044,49165``; where ids end in a
        number, as ``train_36044`` does, the number will do; where they are
        paths, the file name); ``@file``, one id a line, ``#`` starts a comment,
        or a CSV file with a column ``id`` or ``file``; ``row:17,18``, counted
        from 0; ``class:3`` or ``class:NAME``; ``COLUMN=VALUE``, such as
        ``person=4711``, several values separated by commas; ``all``; or
        ``random:16``, a seeded choice in which 16 are the first of 64 and
        which depends on ids, not on the order in which they are stored.
      source: where the instances are.
      seed: of ``random:``.

    Returns:
      (k,) rows, in the order named.

    Raises:
      ValueError: an unknown or repeated id, one of another split than
        "train", one that was skipped, a label or row out of range, no such
        column, a missing file, more instances than there are, or none.

    >>> from jaxunlearn.data import open_source
    >>> parse_forget("random:3", open_source("digits"), seed=0).tolist()
    [913, 11, 787]
    """
    train, text = source.splits["train"], spec.strip()
    kind, _, value = text.partition(":")
    if not len(train):
        raise ValueError(f"{source.name} has no training instances, only {source.filled}")
    if kind == "class" and value:
        label = source.label_of(value)
        rows = train[source.labels[train] == label]
        if not len(rows):
            raise ValueError(f"the forget set is empty: no training instance of {source.name} has the label {label}")
        return rows
    if kind == "random" and value:
        return _random_rows(value, source, train, seed)
    if kind == "row" and value:
        return _checked_rows(_numbered(value, source), value.split(","), source)
    if text == "all":
        return train
    if text.startswith("@"):
        names = _ids_in(text[1:], source)
    elif source.row_of(text) is not None:  # an id with a comma in it, or an equals sign
        names = [text]
    elif "=" in text and (rows := _query(text, source, train)) is not None:
        return rows
    else:
        names = [name.strip() for name in spec.split(",") if name.strip()]
    if not names:
        raise ValueError(f"the forget set is empty: {spec!r} names no instance")
    return _named_rows(names, source)


def parse_targets(
    spec: str, source: Source, rows: np.ndarray, *, seed: int, num_classes: int | None = None
) -> np.ndarray:
    """Return the label to give each instance instead of its own, (k,) int32.

    Args:
      spec: ``random``, uniform over the other labels, a function of seed and
        id; one label or class name for all; or ``@file``, lines ``id,label``.
      source: where the instances are.
      rows: (k,) rows of the forget set.
      seed: of ``random``.
      num_classes: C, default the source's.

    Raises:
      ValueError: a target that is the true label or out of range, an instance
        without a target, a target without an instance, a missing file.
    """
    count = source.num_classes if num_classes is None else num_classes
    true = source.labels[rows]
    if spec.strip() == "random":
        if count < 2:
            raise ValueError(f"a random target needs at least 2 classes; {source.name} has {count}")
        offset = _hashes(f"target|{seed}", source.ids[rows]) % np.uint64(count - 1)
        return ((true + 1 + offset.astype(np.int64)) % count).astype(np.int32)
    if spec.strip().startswith("@"):
        targets = _targets_in(spec.strip()[1:], source, rows, count)
    else:
        targets = np.full(len(rows), source.label_of(spec, count), np.int32)
    same = np.flatnonzero(targets == true)
    if len(same):
        row = rows[same[0]]
        raise ValueError(
            f"the target of instance {source.ids[row]} is its true label, {source.class_name(int(source.labels[row]))}"
            + (f" (and of {len(same) - 1} more)" if len(same) > 1 else "")
            + ": give another label, or 'random'"
        )
    return targets


def ranked(salt: str, source: Source, rows: np.ndarray) -> np.ndarray:
    """Return rows in a random order that depends on the salt and their ids, not on where they are stored."""
    return rows[np.argsort(_hashes(salt, source.ids[rows]), kind="stable")]


def _hashes(salt: str, ids: Iterable[str]) -> np.ndarray:
    """Return 64 bits an id: random, yet the same on every machine and with every NumPy."""
    digests = b"".join(hashlib.sha256(f"{salt}|{name}".encode()).digest()[:8] for name in ids)
    return np.frombuffer(digests, dtype="<u8")


def _random_rows(value: str, source: Source, train: np.ndarray, seed: int) -> np.ndarray:
    if not re.fullmatch(r"\d+", value.strip()):
        raise ValueError(f"random: takes a number of instances, such as random:16; got {value!r}")
    count = int(value)
    if count == 0:
        raise ValueError("the forget set is empty: random:0 names no instance")
    if count > len(train):
        raise ValueError(f"random:{count} asks for more than the {len(train)} training instances of {source.name}")
    return ranked(f"forget|{seed}", source, train)[:count]


def _numbered(value: str, source: Source) -> list[int]:
    """Return the rows of ``row:17,18``."""
    rows = []
    for text in value.split(","):
        if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII):
            raise ValueError(f"row: takes numbers of rows, such as row:17,18; got {text!r}")
        rows.append(int(text))
        if rows[-1] >= len(source.ids):
            raise ValueError(f"row {text} is out of range: {source.name} has rows 0 to {len(source.ids) - 1}")
    return rows


def _query(text: str, source: Source, train: np.ndarray) -> np.ndarray | None:
    """Return the training rows with a value in a column, or None where there is nothing to ask and it may be an id."""
    column, _, value = (part.strip() for part in text.partition("="))
    columns = dict(source.columns)
    if "split" not in columns:
        split = np.full(len(source.ids), "", dtype=object)
        for name, rows in source.splits.items():
            split[rows] = name
        columns["split"] = split
    if column not in columns:
        if source.columns:
            known = ", ".join(sorted(columns))
            raise ValueError(f"unknown id {text!r}, and {source.name} has no column {column!r}, only {known}")
        return None
    cells = columns[column]
    wanted = cells == value
    if not wanted.any() and "," in value:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        absent = next((part for part in parts if not (cells == part).any()), None)
        if absent is not None:
            raise ValueError(_nothing(column, absent, cells[train], source))
        wanted = np.isin(cells.astype(str), parts)
    rows = train[wanted[train]]
    if not len(rows):
        raise ValueError(_nothing(column, value, cells[train], source))
    return rows


def _nothing(column: str, value: str, cells: np.ndarray, source: Source) -> str:
    values = sorted({str(cell) for cell in cells})
    if len(values) <= _FEW:
        close = difflib.get_close_matches(value, values, n=3)
        values = close + [other for other in values if other not in close]
    shown = ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
    return f"the forget set is empty: no training instance of {source.name} has {column}={value!r}; there are {shown}"


def _named_rows(names: list[str], source: Source) -> np.ndarray:
    found = [source.row_of(name) for name in names]
    unknown = [name for name, row in zip(names, found, strict=True) if row is None]
    if unknown:
        same = source.rows_named(unknown[0])
        if len(same) > 1:
            shown = ", ".join(map(name_of, source.ids[same[:3]])) + (", ..." if len(same) > 3 else "")
            raise ValueError(f"{unknown[0]!r} names {len(same)} instances ({shown}): write the whole id")
        examples = [name_of(name) for name in source.ids[source.splits["train"][[0, -1]]]]
        raise ValueError(
            f"unknown id{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown[:5]))}"
            f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}: "
            f"ids of {source.name} look like {examples[0]} or {examples[1]}"
        )
    return _checked_rows(found, names, source)  # type: ignore[arg-type]


def _checked_rows(found: list[int], names: list[str], source: Source) -> np.ndarray:
    """Return rows as an array; raise ValueError for one that is not of the training split, or is there twice."""
    rows = np.array(found, dtype=np.intp)
    train = np.isin(rows, source.splits["train"])
    for name, row in zip(names, found, strict=True):
        if row in source.skipped:
            raise ValueError(
                f"instance {name_of(name)} was skipped, it {source.skipped[row]}: it cannot be forgotten unseen"
            )
    if not train.all():
        at = int(np.argmin(train))
        split = source.split_of(found[at])
        where = f"in the split {split!r}" if split else "of no split of --data"
        raise ValueError(f"instance {name_of(names[at])} is {where}: only training instances can be forgotten")
    values, counts = np.unique(rows, return_counts=True)
    if counts.max() > 1:
        row = values[counts > 1][0]
        spelt = sorted({name for name, found_row in zip(names, found, strict=True) if found_row == row})
        raise ValueError(
            f"instance {' = '.join(map(name_of, spelt))} is named {counts.max()} times: name each instance once"
        )
    return rows


def _lines(path: str) -> list[str]:
    """Return the lines of a file that are not empty and no comment."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise ValueError(f"cannot read {path}: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    if not any(line.partition("#")[0] for line in lines):
        raise ValueError(f"{path} is empty: it must hold one instance a line")
    return [line for line in lines if line and not line.startswith("#")]


def _ids_in(path: str, source: Source) -> list[str]:
    """Return the ids of a file: its lines, or the column ``id`` or ``file`` of a CSV file."""
    lines = _lines(path)
    header = [name.strip().strip('"').lower() for name in lines[0].split(",")]
    column = next((name for name in ("id", "file") if name in header), None)
    if column is not None and source.row_of(lines[0]) is None:
        header, rows = read_table(path, (column,))
        cells = [row[header.index(column)] for _, row in rows]
        for (number, _), cell in zip(rows, cells, strict=True):
            if not cell:
                raise ValueError(f"{path}, line {number}: {column} is empty")
        return cells
    names = []
    for line in lines:
        whole = line.rstrip(",").strip()
        names.append(whole if source.row_of(whole) is not None else _plain(line))
    return names


def _plain(line: str) -> str:
    """Return a line without what follows a ``#``."""
    return line.partition("#")[0].strip().rstrip(",").strip()


def _targets_in(path: str, source: Source, rows: np.ndarray, count: int) -> np.ndarray:
    given: dict[int, int] = {}
    for entry in csv.reader(filter(None, map(_plain, _lines(path)))):
        entry = [cell.strip() for cell in entry]
        if entry == ["id", "label"]:
            continue
        if len(entry) != 2:
            raise ValueError(f"{path} must hold lines id,label; got {','.join(entry)!r}")
        row = source.row_of(entry[0])
        if row is None or row not in rows:
            raise ValueError(f"{path} gives a target for {entry[0]!r}, which is not in the forget set")
        if row in given:
            raise ValueError(f"{path} gives two targets for {entry[0]!r}")
        given[row] = source.label_of(entry[1], count)
    missing = [str(source.ids[row]) for row in rows if row not in given]
    if missing:
        raise ValueError(f"{path} gives no target for {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    return np.array([given[row] for row in rows.tolist()], np.int32)

"""Pictures that a CSV file lists: columns ``file`` and ``label``, optionally ``id`` and ``split``, and any others."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.files import faults_of, shown, source_of
from jaxunlearn.data.labels import class_order
from jaxunlearn.data.pictures import name_of


def open_csv(path: str, root: str | None = None, reading: Reading | None = None) -> Source:
    """Open the pictures that a CSV file lists, one a row, in its order.

    ``file`` is a path from the folder that holds the CSV file, or from
    ``root``; nothing outside of that folder is read. ``label`` is a number or a
    class name. ``id`` must not repeat (default: ``file``); ``split`` is "train"
    (default), "test" or any name. Every column can be asked for in a query.

    Args:
      path: the CSV file: UTF-8, commas, a header.
      root: the folder that files are relative to; default: the one that holds the CSV file.
      reading: how pictures are read.

    Raises:
      ValueError: no such file, wrong encoding or separator, a missing or repeated column, a row with more or
        fewer cells, an empty cell, an id twice, a path that leads outside, labels as `class_order` refuses.
      PictureError: a picture that cannot be read, as far as it shows before it is decoded.
    """
    reading = reading or Reading()
    header, rows = read_table(path, ("file", "label") if reading.labelled else ("file",))
    folder = Path(path).expanduser().parent if root is None else Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"no folder {root}: --data-dir is the folder that the files in {path} are relative to")
    cells = {name: [row[i] for _, row in rows] for i, name in enumerate(header)}
    lines = [line for line, _ in rows]
    files = [_inside(file, path, line) for file, line in zip(cells["file"], lines, strict=True)]
    for name in ("label", "id", "split"):
        for cell, line in zip(cells.get(name, ()), lines, strict=name in cells):
            if not cell and (name != "label" or reading.labelled):
                raise ValueError(f"{path}, line {line}: {name} is empty")
    ids = cells.get("id", files)
    _no_repeats(path, "id" if "id" in cells else "file", ids, lines)
    order = None
    if reading.labelled:
        given = cells["label"]
        order = class_order(given, reading, path, lambda name: f"{path}, line {lines[given.index(name)]},")
    paths = [folder / file for file in files]
    return source_of(
        name=f"csv:{path}",
        contents=lambda wanted: [paths[row] for row in wanted],
        name_of_row=lambda row: f"{shown(paths[row])} ({path}, line {lines[row]})",
        ids=ids,
        labels=np.array([order.label[name] for name in cells["label"]] if order else np.zeros(len(files), int)),
        order=order,
        split=cells.get("split", ["train"] * len(files)),
        reading=reading,
        columns={name: np.array(column, dtype=str) for name, column in cells.items()} | {"file": np.array(files)},
        faults=faults_of(paths, any_name=True),
        files=paths,
    )


def read_table(path: str, needed: tuple[str, ...]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a CSV file and its rows, each with its line number, cells stripped; empty lines are none.

    Raises:
      ValueError: as `open_csv` for the form of the file; the columns needed are there.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        raise ValueError(
            f"{path}, line {before.count(bytes([10])) + 1} is not UTF-8 (byte {error.object[error.start]:#04x}): "
            "save it as CSV in UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if "\0" in text:
        raise ValueError(f"{path} is no CSV file: line {text[: text.index(chr(0))].count(chr(10)) + 1} has a zero byte")
    rows = list(_rows(path, text))
    if not rows:
        raise ValueError(f"{path} is empty: its first line must name the columns, {', '.join(needed)} among them")
    header = [name.lower() for name in rows[0][1]]
    for name in needed:
        if name not in header:
            many = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
            hint = f"they are separated by {many!r}: save it with commas" if many else "name it in the first line"
            raise ValueError(f"{path} has no column {name!r}, only {', '.join(map(name_of, rows[0][1]))}: {hint}")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {twice!r}: rename one")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line} has {len(row)} cells, the header {len(header)}: "
                f"{name_of(','.join(row)[:60])} (a cell with a comma in it must stand in quotes)"
            )
    if len(rows) == 1:
        raise ValueError(f"{path} has a header and no rows")
    return header, rows[1:]


def _rows(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {line} is no CSV: {error}") from error
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _inside(file: str, path: str, line: int) -> str:
    """Return a path from the folder, in its plain form; raise ValueError if it leads outside."""
    where = f"{path}, line {line}: file"
    if not file:
        raise ValueError(f"{where} is empty")
    if PurePosixPath(file).is_absolute() or PureWindowsPath(file).drive or file.startswith(("\\", "~")):
        raise ValueError(
            f"{where} {name_of(file)} is an absolute path: write it from the folder of the CSV file, or from --data-dir"
        )
    plain = os.path.normpath(file).replace(os.sep, "/")
    if plain == ".." or plain.startswith("../"):
        raise ValueError(
            f"{where} {name_of(file)} leads out of the folder, and nothing outside is read: "
            "name a folder that holds all files with --data-dir"
        )
    return plain


def _no_repeats(path: str, column: str, values: list[str], lines: list[int]) -> None:
    first: dict[str, int] = {}
    for value, line in zip(values, lines, strict=True):
        if first.setdefault(value, line) != line:
            more = "" if column == "id" else " (give a column id if it is meant to be there twice)"
            raise ValueError(f"{path}, line {line}: {column} {name_of(value)} is in line {first[value]}, too{more}")

"""Parquet files in the image layout of Hugging Face: a column of ``{bytes, path}`` and one of labels."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import _files
from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.files import source_of
from jaxunlearn.data.labels import Order, class_order, how
from jaxunlearn.data.pictures import Content, name_of

_SPLITS = ("train", "test", "validation", "valid", "val", "dev")


class _File(NamedTuple):
    """A Parquet file: ``starts`` are the first row of each of its row groups, and the number of its rows."""

    path: Path
    reader: Any
    starts: np.ndarray


def open_parquet(path: str, reading: Reading | None = None) -> Source:
    """Open a Parquet file, or all in a folder; pictures are read one row group at a time.

    The picture is the column ``image``, else the only one of ``{bytes,
    path}``; the label ``label``, else the only class label. Class names are
    those of Hugging Face's metadata. Ids are the column ``id``, else the paths
    in the pictures where they do not repeat, else ``train_0``. The split is the
    column ``split``, else what the file's name begins with
    (``train-00000-of-00002.parquet``), else "train"; one whose labels are all -1
    (Hugging Face's "unknown") is left out.

    Raises:
      ValueError: no such file, not Parquet, damaged, no such columns, labels as `class_order` refuses.
      ModuleNotFoundError: pyarrow is not installed.
      PictureError: a picture that cannot be read.
    """
    reading = reading or Reading()
    files = _opened(path)
    schema = files[0].reader.schema_arrow
    features = _features(schema)
    image = _image_column(path, schema, features)
    label = _label_column(path, schema, features, image) if reading.labelled else None
    flat = [f.name for f in schema if f.name != image and not _nested(f.type) and not _binary(f.type)]
    has_path = "path" in _children(schema.field(image).type)

    columns: dict[str, list[Any]] = {name: [] for name in flat}
    paths: list[Any] = []
    split: list[str] = []
    for file in files:
        if file.reader.schema_arrow.names != schema.names:
            raise ValueError(
                f"{file.path} has other columns than {files[0].path}: {', '.join(file.reader.schema_arrow.names)}"
            )
        table = _read(file, [*flat, *([f"{image}.path"] if has_path else [])])
        for name in flat:
            columns[name] += table.column(name).to_pylist()
        rows = int(file.starts[-1])
        paths += (
            [cell.get("path") if cell else None for cell in table.column(image).to_pylist()]
            if has_path
            else [None] * rows
        )
        begins = re.split(r"[-_.]", file.path.stem.lower())[0]
        split += [begins if begins in _SPLITS else "train"] * rows
    split = [str(name) for name in columns.get("split", split)]
    if not split:
        raise ValueError(f"{path} has no rows")
    if label is not None:
        unknown = _unknown(columns[label], split)
        keep = [row for row, name in enumerate(split) if name not in unknown]
    else:
        keep = list(range(len(split)))
    rows_of = np.array(keep, dtype=np.intp)
    split = [split[row] for row in keep]
    paths = [paths[row] for row in keep]
    columns = {name: [column[row] for row in keep] for name, column in columns.items()}
    ids = _ids(columns.get("id"), paths, split)
    labels, order = np.zeros(len(split), int), None
    if label is not None:
        labels, order = _labels(path, label, columns[label], features.get(label, {}).get("names"), reading)
    contents = _Contents(files, image, rows_of)
    return source_of(
        name=f"parquet:{path}",
        contents=contents,
        name_of_row=lambda row: f"{contents.where(row)}, {name_of(ids[row])},",
        ids=ids,
        labels=labels,
        order=order,
        split=split,
        reading=reading,
        columns={name: np.array(["" if v is None else str(v) for v in column]) for name, column in columns.items()},
        archives=[file.path for file in files],
    )


class _Contents:
    """The bytes of pictures by row; holds one row group at a time."""

    def __init__(self, files: list[_File], image: str, rows: np.ndarray) -> None:
        self._files, self._image, self._rows = files, image, rows
        self._first = np.cumsum([0, *(int(file.starts[-1]) for file in files)])
        self._lock = threading.Lock()
        self._held: tuple[tuple[int, int], Any] | None = None

    def __call__(self, rows: np.ndarray) -> Sequence[Content]:
        found: list[Content] = ["" for _ in rows]
        places = [self._place(int(self._rows[row])) for row in rows]
        with self._lock:
            for i in sorted(range(len(places)), key=lambda i: places[i]):
                file, group, position = places[i]
                if self._held is None or self._held[0] != (file, group):
                    self._held = None  # before the next is read: one at a time
                    self._held = (file, group), _read(self._files[file], [self._image], group).column(self._image)
                cell = self._held[1][position].as_py()
                found[i] = (cell or {}).get("bytes") or "has no bytes in it, only a path at most"
        return found

    def where(self, row: int) -> str:
        file = int(np.searchsorted(self._first, self._rows[row], side="right")) - 1
        return f"row {int(self._rows[row] - self._first[file])} of {self._files[file].path}"

    def _place(self, row: int) -> tuple[int, int, int]:
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        row -= int(self._first[file])
        starts = self._files[file].starts
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return file, group, row - int(starts[group])


def _opened(path: str) -> list[_File]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"parquet:{path} needs pyarrow: pip install 'jaxunlearn[parquet]'") from error
    where = Path(path).expanduser()
    if not where.exists():
        raise ValueError(f"no file or folder {path}")
    found = sorted(where.rglob("*.parquet")) if where.is_dir() else [where]
    if not found:
        raise ValueError(f"{path} has no .parquet files in it")
    files = []
    for file in found:
        try:
            reader = parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} is no Parquet file, or damaged: {_line(error)}") from error
        groups = [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]
        files.append(_File(file, reader, np.cumsum([0, *groups])))
    return files


def _read(file: _File, columns: list[str], group: int | None = None) -> Any:
    import pyarrow

    try:
        table = file.reader.read(columns) if group is None else file.reader.read_row_group(group, columns)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{file.path} is damaged: {_line(error)}") from error
    rows = int(file.starts[-1] if group is None else file.starts[group + 1] - file.starts[group])
    for name, column in zip(table.column_names, table.columns, strict=True):
        if len(column) != rows:  # which pyarrow does not look at
            raise ValueError(f"{file.path} is damaged: it says {rows:,} rows, {name} has {len(column):,}")
    return table


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face's metadata say of each column, or nothing where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _image_column(path: str, schema: Any, features: dict[str, Any]) -> str:
    found = [field.name for field in schema if "bytes" in _children(field.type)]
    wanted = [name for name in found if name == "image" or len(found) == 1]
    if not wanted:
        raise ValueError(
            f"{path} must have one column of pictures, a struct of bytes and path, named image; "
            f"it has {', '.join(f'{field.name} ({field.type})' for field in schema)[:300]}"
        )
    return wanted[0]


def _label_column(path: str, schema: Any, features: dict[str, Any], image: str) -> str:
    if "label" in schema.names:
        return "label"
    found = [
        name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names
    ]
    if len(found) != 1:
        rest = ", ".join(name for name in schema.names if name != image)
        raise ValueError(f"{path} must have a column label; it has {rest or 'none beside the pictures'}")
    return found[0]


def _labels(path: str, column: str, values: list[Any], names: Any, reading: Reading) -> tuple[np.ndarray, Order]:
    """Return the labels, and what they are: numbers into the names of the metadata, numbers, or names."""
    for row, value in enumerate(values):
        if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
            raise ValueError(f"{path}, row {row}: {column} must be a number or a class name; got {value!r}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{path}, row {row}: {column} must be a label from 0; got {value}")
    if any(isinstance(value, str) for value in values) or not _are_names(names):
        text = [str(value) for value in values]
        order = class_order(text, reading, path, lambda name: f"{path}, row {text.index(name)},")
        return np.array([order.label[value] for value in text]), order
    for row, value in enumerate(values):
        if value >= len(names):
            raise ValueError(
                f"{path}, row {row}: {column} {value} is out of range: the file names {len(names)} classes"
            )
    if reading.classes is not None:
        named = [names[value] for value in values]
        order = class_order(named, reading, path, lambda name: f"{path}, row {named.index(name)},")
        return np.array([order.label[name] for name in named]), order
    if reading.num_classes not in (None, len(names)):
        shown = ", ".join(map(_files.printable, names[:5])) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"{path} has {len(names)} classes ({shown}), the network {reading.num_classes}: {how(reading)}"
        )
    label = {name: number for number, name in enumerate(names)}
    return np.array(values), Order(
        label, tuple(names), len(names), f"{len(names)}, in the order of the file's metadata"
    )


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)


def _unknown(labels: list[Any], split: list[str]) -> set[str]:
    """Return the splits of which no label is known, where there are others."""
    all_splits = set(split)
    known = {name for name, label in zip(split, labels, strict=True) if label != -1}
    return all_splits - known if known else set()


def _ids(given: list[Any] | None, paths: list[Any], split: list[str]) -> list[str]:
    if given is not None:
        return [str(value) for value in given]
    if all(isinstance(path, str) and path for path in paths) and len(set(paths)) == len(paths):
        return paths
    counts: dict[str, int] = {}
    ids = []
    for name in split:
        ids.append(f"{name}_{counts.get(name, 0)}")
        counts[name] = counts.get(name, 0) + 1
    return ids


def _children(kind: Any) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)] if str(kind).startswith("struct") else []


def _nested(kind: Any) -> bool:
    return bool(kind.num_fields)


def _binary(kind: Any) -> bool:
    return "binary" in str(kind)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

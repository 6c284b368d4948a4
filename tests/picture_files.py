"""The digits as files of pictures, for tests of data in files; the network of `tests.digits_net` knows them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxunlearn.data import open_source

#: Class folders of digits, so that their names sort as the labels do.
NAMES = tuple(f"d{digit}" for digit in range(10))


def digit(row: int) -> bytes:
    """Return a digit as a PNG, 8x8 grey."""
    pixels = open_source("digits").images([row])[0, ..., 0]
    stream = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def label(row: int) -> int:
    """Return the label of a digit."""
    return int(open_source("digits").labels[row])


def write_folder(root: Path, rows, names=NAMES) -> None:
    """Write digits as ``CLASS/ROW.png``."""
    for row in rows:
        file = root / names[label(row)] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(digit(row))


def write_table(root: Path, rows, columns=("file", "label"), **more) -> Path:
    """Write digits as ``pictures/ROW.png`` and ``table.csv``; more columns are functions of the row."""
    cell = {"file": lambda row: f"pictures/{row}.png", "label": lambda row: str(label(row)), **more}
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    for row in rows:
        (root / "pictures" / f"{row}.png").write_bytes(digit(row))
    names = [*columns, *more]
    lines = [",".join(names), *(",".join(cell[name](row) for name in names) for row in rows)]
    (root / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "table.csv"


def write_parquet(path: Path, rows, *, names=NAMES, group=7, labels=None, **more) -> None:
    """Write digits as Hugging Face's ``datasets`` writes them; names None leaves the metadata out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": digit(row), "path": f"{row}.png"} for row in rows]
    image = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    values = [label(row) for row in rows] if labels is None else labels
    table = pa.table({"image": image, "label": values, **{k: [f(row) for row in rows] for k, f in more.items()}})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)

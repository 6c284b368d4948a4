"""SHA-256 digests of the data of a run, in forms that an auditor can compute again without this library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _files, _tree
from jaxunlearn._types import Batch
from jaxunlearn.job.request import Request

#: Bytes of files that are read once more for their digests; beyond that they have none.
LARGEST = 2**28


def of_data(request: Request, forget: Batch) -> dict[str, str]:
    """Return the digests of the forget set, of the files it came from and of the rows that are measured, by name.

    "forget set" is `forget_set`. "files of the forget set" is of the text that
    has a line for each instance, in the order of the forget set: the SHA-256 of
    its file in hexadecimal and a newline (``sha256sum FILES | cut -c-64 |
    sha256sum``). "file NAME" is of a file that holds many instances, as it is.
    Files of more than `LARGEST` bytes together, and those that cannot be read
    any more, are left out. "retain rows" and "test rows" are `numbers` of the
    rows measured.

    Args:
      request: what is asked.
      forget: the forget set as the network is given it.
    """
    source = request.source
    found = {"forget set": forget_set(forget.x, forget.y, source.ids[request.rows].tolist())}
    own = [] if source.files is None else [source.files[row] for row in request.rows]
    if own and (lines := _of_files(own)) is not None:
        found["files of the forget set"] = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    for path, line in zip(source.archives, _of_files(source.archives) or (), strict=False):
        found[f"file {_files.printable(path.name)}"] = line
    measured = {f"{name} rows": numbers(rows) for name, rows in request.sets().items() if name != "forget"}
    return found | measured


def forget_set(x: Any, y: Any, ids: Sequence[Any]) -> str:
    """Return the SHA-256 of a forget set as the network saw it.

    It is of these bytes, one after the other: ``ids|``, ``|u1|``, ``(n,)|``
    and the ids as n bytes, the ASCII text that ``json.dumps`` makes of their
    list; ``x|<f4|``, the shape as Python writes it, ``|`` and the images as
    little-endian float32 in C order, after resizing and before the network's
    own normalisation; ``y|<i4|``, the shape, ``|`` and the labels as
    little-endian int32.

    Args:
      x: (k, *input_shape) images; y: (k,) labels; ids: k names.

    >>> forget_set(np.zeros((1, 2, 2, 1)), [3], ["a"])[:16]
    '1d0f608628073f72'
    """
    text = np.frombuffer(json.dumps(list(ids)).encode("ascii"), np.uint8)
    return _tree.digest({"ids": text, "x": np.asarray(x, "<f4"), "y": np.asarray(y, "<i4")})


def numbers(rows: Any) -> str:
    """Return the SHA-256 of row numbers as little-endian int64, in their order.

    >>> numbers([0, 1]) == hashlib.sha256(bytes(8) + bytes([1]) + bytes(7)).hexdigest()
    True
    """
    return hashlib.sha256(np.asarray(rows, "<i8").tobytes()).hexdigest()


def _of_files(paths: Sequence[Path | None]) -> list[str] | None:
    """Return the digest of each file; None where there is none, or they are large, or gone by now."""
    given = [path for path in paths if path is not None]
    if len(given) < len(paths):
        return None
    try:
        if sum(_files.regular(path) for path in given) > LARGEST:
            return None
        return [_of_file(path) for path in given]
    except OSError:
        return None


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that strangers made: opened only where reading them comes to an end, and told of in one printable line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zipfile

#: Bytes of a JSON file that is read; results of a hundred thousand instances have some tens of millions.
_MOST = 2**27
#: Characters of a message: a name in it may have millions.
_LONG = 600


class Recovered(UserWarning):
    """What a process that was killed had moved aside is back in its place."""


def regular(path: str | os.PathLike[str]) -> int:
    """Return the size of a file that can be read; a pipe would wait for ever, a device have no end.

    Raises:
      OSError: there is none, it may not be read, or it is something else than a file.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))
    with open(path, "rb"):  # fails here without permission, with the system's own reason
        return found.st_size


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
      OSError: as `regular`.
      ValueError: no JSON, or one that is larger or nested deeper than any that is meant.
    """
    size = regular(path)
    if size > _MOST:
        raise ValueError(f"{path} has {size:,} bytes, more than the {_MOST:,} that are read of such a file")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


@contextlib.contextmanager
def in_place(path: Path) -> Iterator[IO[bytes]]:
    """Write a file aside and put it in place in one move; after an exception nothing is left of it."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def npz_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """Return an array of NumPy's archive; nothing is unpickled, nor memory set aside that the file does not fill.

    Raises:
      ValueError: it is no array, one of Python objects, or its header claims more than there is.
      Exception: whatever NumPy and zipfile raise of a damaged one.
    """
    import numpy as np  # here: the command line starts without it

    if not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename!r} is no array")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, a pickle, which is not read")
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} says shape {shape} and has {member.file_size:,} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def printable(text: str, most: int = _LONG) -> str:
    r"""Return a text on one line that is safe to show: control characters escaped, a long one cut in the middle.

    >>> printable("a\n b\x1b[31m"), printable("a" * 50 + "b" * 50, most=20)
    ('a b\\x1b[31m', 'aaaaaaaaaa ... bbbbb')
    """
    text = text if len(text) <= 8 * most else text[: 4 * most] + text[-4 * most :]
    text = visible(" ".join(text.split()))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most - most // 2 - 5) :]}"


def visible(text: str) -> str:
    """Return a text with all that does not show written out: controls, what turns text round, bytes of no encoding.

    >>> print(visible("\\x1b[31mred \\u202e \\udcff"))
    \\x1b[31mred \\u202e \\xff
    """
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def _escape(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # stands for a byte of a file name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Make what goes wrong in reading a stranger's file a ValueError of one printable line; also a decorator.

    Numbers out of all proportion overflow, lists in lists exhaust the stack, and names hold whatever they like.
    """
    try:
        yield
    except RecursionError:
        raise ValueError("what is to be read is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        text = printable(str(error)) or type(error).__name__
        if type(error) is ValueError and text == str(error):
            raise
        raise ValueError(text) from None

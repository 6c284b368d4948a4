"""Every mistake about data in files, how it is made and what is said of it.

``python -m tests.data_mistakes`` prints the table of docs/errors.md.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import _cpu
from tests.picture_files import digit, write_folder, write_parquet, write_table
from tests.test_data import write_tfds


class Mistake(NamedTuple):
    """A mistake.

    Attributes:
      what: is wrong, in the words of the table.
      make: makes it in the current folder.
      asked: flags after those that name the network and the output; ``--forget all`` where none is there.
      said: the line, ``...`` where the words are a library's.
    """

    what: str
    make: Callable[[pytest.MonkeyPatch], object]
    asked: str
    said: str


def good(*more: Callable[[], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what writes a good folder ``photos`` (all ten classes), a good table and then what is wrong."""

    def make(monkeypatch: pytest.MonkeyPatch) -> None:
        write_folder(Path("photos"), range(1, 11))
        write_table(Path(), [1, 2])
        for step in more:
            step()

    return make


def file(path: str, content: bytes | str) -> Callable[[], None]:
    """Return what writes a file."""

    def write() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def bomb() -> bytes:
    """Return a PNG of 100 million pixels in some hundred bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def refuse(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what makes a file or folder unreadable, for root, too."""

    def make(monkeypatch: pytest.MonkeyPatch) -> None:
        good()(monkeypatch)
        for module, call in ((Image, "open"), (os, "scandir")):
            real = getattr(module, call)

            def opened(path, *args, real=real, **kwargs):
                if str(path).endswith(name):
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path, *args, **kwargs)

            monkeypatch.setattr(module, call, opened)

    return make


def parquet(**how) -> Callable[[], None]:
    """Return what writes ``a.parquet``."""
    return lambda: write_parquet(Path("a.parquet"), [1, 2], **how)


def parquet_of(**columns) -> Callable[[], None]:
    """Return what writes ``a.parquet`` of columns."""

    def write() -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), "a.parquet")

    return write


def cut(path: str, size: int) -> Callable[[], None]:
    """Return what cuts a file short."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:size])


def link(path: str, target: str) -> Callable[[], None]:
    """Return what makes a symbolic link."""
    return lambda: Path(path).symlink_to(target)


def table(*lines: str) -> Callable[[], None]:
    """Return what writes ``t.csv``."""
    return file("t.csv", "\n".join(lines) + "\n")


def float_tiff() -> None:
    """Write a picture of 32-bit values."""
    Image.fromarray(np.zeros((8, 8), np.float32)).save("photos/d1/x.tiff")


GREY = np.zeros((2, 8, 8, 1), np.uint8)


def npz(**arrays: Any) -> Callable[[], None]:
    """Return what writes ``a.npz``: two grey images and labels, or other arrays."""
    return lambda: np.savez("a.npz", **({"x": GREY, "y": np.arange(2)} | arrays))


def damage(path: str, at: int) -> Callable[[], None]:
    """Return what changes some bytes of a file."""

    def write() -> None:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:at] + bytes(b ^ 255 for b in content[at : at + 9]) + content[at + 9 :])

    return write


def lying() -> None:
    """Write an archive whose header of x tells of more images than there are."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (99_999_999, 8, 8, 1)}
    )
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + bytes(64))


def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an archive of some bytes that becomes more than the memory holds, which is made small for that."""
    good()(monkeypatch)
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(2**20))
    monkeypatch.setattr(_cpu, "host_memory", lambda: 2**28)


PHOTOS, TABLE, NPZ = "--data folder:photos", "--data csv:t.csv", "--data npz:a.npz"
SKIP = "remove or replace it, or leave such pictures out with --on-bad-image skip"
SUFFIXES = ".jpg .jpeg .png .webp .bmp .gif .tif .tiff"
ORDER = "give --classes FILE: the network's class names, one a line, in the order of its outputs"
NAMES = "\n".join(f"d{n}" for n in range(10))
ONE = "pictures/1.png,1"

MISTAKES = (
    # pictures
    Mistake(
        "a picture is cut short",
        good(file("photos/d1/x.png", digit(1)[:70])),
        PHOTOS,
        f"photos/d1/x.png is damaged or cut short (...): {SKIP}",
    ),
    Mistake(
        "a picture is damaged",
        good(file("photos/d1/x.png", digit(1)[:50] + b"\0" * 40 + digit(1)[90:])),
        PHOTOS,
        f"photos/d1/x.png is damaged ...: {SKIP}",
    ),
    Mistake("a picture is empty", good(file("photos/d1/x.png", "")), PHOTOS, f"photos/d1/x.png is empty: {SKIP}"),
    Mistake(
        "a file is not what its name says",
        good(file("photos/d1/x.jpg", "<!DOCTYPE html>")),
        PHOTOS,
        f"photos/d1/x.jpg is not a picture, whatever its name says: it begins with b'<!DOCTYPE ht': {SKIP}",
    ),
    Mistake(
        "a picture is of a kind that is not read",
        good(file("photos/d1/x.jpg", b"\0\0\0\x18ftypheic" + b"\0" * 20)),
        PHOTOS,
        f"photos/d1/x.jpg is a HEIC or AVIF picture, which is not read (JPEG and PNG are): {SKIP}",
    ),
    Mistake(
        "a picture is huge",
        good(file("photos/d1/x.png", bomb())),
        PHOTOS,
        f"photos/d1/x.png has more than 89 million pixels: {SKIP}",
    ),
    Mistake(
        "a picture has 32 bits a value",
        good(float_tiff),
        PHOTOS,
        f"photos/d1/x.tiff has 32-bit values, of unknown range (8 and 16 bits are read): {SKIP}",
    ),
    Mistake(
        "several pictures are bad",
        good(file("photos/d1/x.png", ""), file("photos/d1/y.png", "")),
        PHOTOS,
        f"photos/d1/x.png is empty (and 1 more such picture): {SKIP}",
    ),
    Mistake(
        "a file in a class folder is no picture",
        good(file("photos/d1/notes.txt", "mine")),
        PHOTOS,
        f"photos/d1/notes.txt is no picture by its name ({SUFFIXES}): {SKIP}",
    ),
    Mistake(
        "no permission to read a picture",
        refuse("1.png"),
        PHOTOS,
        f"photos/d1/1.png cannot be read: Permission denied: {SKIP}",
    ),
    Mistake(
        "a link leads nowhere",
        good(link("photos/d1/x.png", "gone.png")),
        PHOTOS,
        f"photos/d1/x.png cannot be read: No such file or directory: {SKIP}",
    ),
    Mistake(
        "a link leads to itself",
        good(link("photos/d1/x.png", "x.png")),
        PHOTOS,
        f"photos/d1/x.png cannot be read: Too many levels of symbolic links: {SKIP}",
    ),
    Mistake(
        "a picture is a pipe or a device",
        good(lambda: os.mkfifo("photos/d1/x.png")),
        PHOTOS,
        f"photos/d1/x.png is not a file: {SKIP}",
    ),
    Mistake(
        "a file's name is not UTF-8",
        good(lambda: Path(os.fsdecode(b"photos/d1/\xff.png")).write_bytes(digit(1))),
        PHOTOS,
        f"photos/d1/\\xff.png has a name that is not UTF-8 (rename it): {SKIP}",
    ),
    Mistake(
        "no picture can be read",
        good(lambda: [path.write_bytes(b"") for path in Path("photos").rglob("*.png")]),
        f"{PHOTOS} --on-bad-image skip",
        "folder:photos: none of 10 pictures can be read; photos/d0/10.png is empty (and 9 more such pictures): ...",
    ),
    # folders
    Mistake("no such folder", good(), "--data folder:fotos", "no folder fotos"),
    Mistake("a file in the place of a folder", good(), "--data folder:table.csv", "table.csv is a file, not a folder"),
    Mistake(
        "an empty folder",
        good(lambda: Path("empty").mkdir()),
        "--data folder:empty",
        "empty has no pictures in it: they must lie in folders of their class, empty/CLASS/1.jpg",
    ),
    Mistake(
        "a picture in no class folder",
        good(file("photos/x.png", digit(1))),
        PHOTOS,
        "photos/x.png lies in no class folder: put it into CLASS/, or say its class with csv:FILE",
    ),
    Mistake(
        "no permission to read a folder",
        refuse("d3"),
        PHOTOS,
        "cannot read the folder photos/d3: Permission denied",
    ),
    Mistake(
        "a loop of symbolic links",
        good(link("photos/d1/again", "../../photos")),
        PHOTOS,
        "photos/d1/again is a symbolic link to a folder that it lies in, a loop: remove it",
    ),
    # classes
    Mistake(
        "fewer or more classes than the network has",
        good(lambda: write_folder(Path("few"), [3, 4, 5])),
        "--data folder:few",
        f"folder:few has 3 classes (d3, d4, d5), the network 10: {ORDER}",
    ),
    Mistake(
        "a class that the network does not have",
        good(file("names", NAMES), file("photos/cat/1.png", digit(1))),
        f"{PHOTOS} --classes names",
        "class 'cat' of folder:photos is not among the 10 of --classes names (d0, d1, d2, ...): add it",
    ),
    Mistake(
        "a folder named by a number that is no label",
        good(file("n/12/1.png", digit(1))),
        "--data folder:n",
        "label 12 of folder:n is out of range: the network has outputs 0 to 9 (if it is a name and not a number, "
        f"{ORDER})",
    ),
    Mistake(
        "two folders of one label",
        good(file("n/1/1.png", digit(1)), file("n/01/1.png", digit(1))),
        "--data folder:n",
        "classes '01' and '1' of folder:n are the same label, 1: rename one",
    ),
    Mistake(
        "no such file of class names",
        good(),
        f"{PHOTOS} --classes names",
        "cannot read --classes names: No such file or directory",
    ),
    Mistake(
        "class names in another encoding",
        good(file("names", "caf\xe9".encode("latin-1"))),
        f"{PHOTOS} --classes names",
        "cannot read --classes names: not text in UTF-8",
    ),
    Mistake(
        "no class names",
        good(file("names", "\n")),
        f"{PHOTOS} --classes names",
        "--classes names is empty: it must hold one class name a line",
    ),
    Mistake(
        "as many class names as do not fit the network",
        good(file("names", "d0\nd1\n")),
        f"{PHOTOS} --classes names",
        "--classes names has 2 names, the network 10 outputs: it must name each",
    ),
    Mistake(
        "a class name twice",
        good(file("names", "d0\nd1\nd0\n")),
        f"{PHOTOS} --classes names",
        "--classes names, line 3: 'd0' is in line 1, too",
    ),
    Mistake(
        "an empty line between class names",
        good(file("names", "d0\n\nd2\n")),
        f"{PHOTOS} --classes names",
        "--classes names, line 2 is empty: each line is the name of one output",
    ),
    # tables
    Mistake("no such CSV file", good(), TABLE, "cannot read t.csv: No such file or directory"),
    Mistake(
        "an empty CSV file",
        good(file("t.csv", "\n")),
        TABLE,
        "t.csv is empty: its first line must name the columns, file, label among them",
    ),
    Mistake("a header and nothing else", good(table("file,label")), TABLE, "t.csv has a header and no rows"),
    Mistake(
        "a column is missing",
        good(table("path,label", ONE)),
        TABLE,
        "t.csv has no column 'file', only path, label: name it in the first line",
    ),
    Mistake(
        "semicolons in the place of commas",
        good(table("file;label", "pictures/1.png;1")),
        TABLE,
        "t.csv has no column 'file', only file;label: they are separated by ';': save it with commas",
    ),
    Mistake(
        "a column twice",
        good(table("file,label,label", f"{ONE},1")),
        TABLE,
        "t.csv has two columns 'label': rename one",
    ),
    Mistake(
        "a row with more or fewer cells",
        good(table("file,label", ONE, "pictures/2,1.png,1")),
        TABLE,
        "t.csv, line 3 has 3 cells, the header 2: pictures/2,1.png,1 (a cell with a comma in it must stand in quotes)",
    ),
    Mistake(
        "a quote that is not closed",
        good(table("file,label", '"pictures/1.png,1')),
        TABLE,
        "t.csv, line 2 is no CSV: ...",
    ),
    Mistake(
        "another encoding",
        good(file("t.csv", "file,label\npictures/\xe9.png,1\n".encode("latin-1"))),
        TABLE,
        "t.csv, line 2 is not UTF-8 (byte 0xe9): save it as CSV in UTF-8",
    ),
    Mistake(
        "a file that is no text",
        good(file("t.csv", b"file,label\n\0\0")),
        TABLE,
        "t.csv is no CSV file: line 2 has a zero byte",
    ),
    Mistake("a cell is empty", good(table("file,label", "pictures/1.png,")), TABLE, "t.csv, line 2: label is empty"),
    Mistake("a file name is empty", good(table("file,label", ",1")), TABLE, "t.csv, line 2: file is empty"),
    Mistake(
        "a row without a label, marked -1",
        good(table("file,label", "pictures/1.png,1", "pictures/2.png,-1")),
        TABLE,
        "label -1 of t.csv, line 3, is below 0: leave out what has no label, or name classes",
    ),
    Mistake(
        "a label out of range",
        good(table("file,label", "pictures/1.png,10")),
        TABLE,
        "label 10 of t.csv, line 2, is out of range: the network has outputs 0 to 9 (if it is a name and not a number, "
        f"{ORDER})",
    ),
    Mistake(
        "an id twice",
        good(table("file,label,id", f"{ONE},a", "pictures/2.png,2,a")),
        TABLE,
        "t.csv, line 3: id a is in line 2, too",
    ),
    Mistake(
        "a file twice",
        good(table("file,label", ONE, ONE)),
        TABLE,
        "t.csv, line 3: file pictures/1.png is in line 2, too (give a column id if it is meant to be there twice)",
    ),
    Mistake(
        "an absolute path",
        good(table("file,label", "/etc/passwd,1")),
        TABLE,
        "t.csv, line 2: file /etc/passwd is an absolute path: write it from the folder of the CSV file, "
        "or from --data-dir",
    ),
    Mistake(
        "a path that leads out of the folder",
        good(table("file,label", "pictures/../../x.png,1")),
        TABLE,
        "t.csv, line 2: file pictures/../../x.png leads out of the folder, and nothing outside is read: "
        "name a folder that holds all files with --data-dir",
    ),
    Mistake(
        "a file of a table is not there",
        good(table("file,label", ONE, "pictures/9.png,9")),
        TABLE,
        f"pictures/9.png (t.csv, line 3) cannot be read: No such file or directory: {SKIP}",
    ),
    Mistake(
        "no such folder of a table's files",
        good(),
        "--data csv:table.csv --data-dir absent",
        "no folder absent: --data-dir is the folder that the files in table.csv are relative to",
    ),
    # Parquet
    Mistake("no such Parquet file", good(), "--data parquet:a.parquet", "no file or folder a.parquet"),
    Mistake("a folder without Parquet files", good(), "--data parquet:photos", "photos has no .parquet files in it"),
    Mistake(
        "a Parquet file is damaged or none",
        good(parquet(), cut("a.parquet", 300)),
        "--data parquet:a.parquet",
        "a.parquet is no Parquet file, or damaged: ...",
    ),
    Mistake(
        "no column of pictures",
        good(parquet_of(label=[1])),
        "--data parquet:a.parquet",
        "a.parquet must have one column of pictures, a struct of bytes and path, named image; it has label (int64)",
    ),
    Mistake(
        "no column of labels",
        good(parquet_of(image=[{"bytes": digit(1)}], digit=[1])),
        "--data parquet:a.parquet",
        "a.parquet must have a column label; it has digit",
    ),
    Mistake(
        "a label of Parquet is missing",
        good(parquet(labels=[1, None], names=None)),
        "--data parquet:a.parquet",
        "a.parquet, row 1: label must be a number or a class name; got None",
    ),
    Mistake(
        "a label of Parquet is negative",
        good(parquet(labels=[1, -2])),
        "--data parquet:a.parquet",
        "a.parquet, row 1: label must be a label from 0; got -2",
    ),
    Mistake(
        "a label of Parquet without a name",
        good(parquet(labels=[1, 10])),
        "--data parquet:a.parquet",
        "a.parquet, row 1: label 10 is out of range: the file names 10 classes",
    ),
    Mistake(
        "Parquet holds no pictures, only paths",
        good(parquet_of(image=[{"bytes": None, "path": "1.png"}], label=[1])),
        "--data parquet:a.parquet",
        f"row 0 of a.parquet, 1.png, has no bytes in it, only a path at most: {SKIP}",
    ),
    # archives of NumPy
    Mistake("no such archive", good(), NPZ, "no data file a.npz"),
    Mistake(
        "an archive that is none, or cut short",
        good(npz(), cut("a.npz", 300)),
        NPZ,
        "a.npz is not a NumPy .npz archive, or is cut short",
    ),
    Mistake("a damaged archive", good(npz(), damage("a.npz", 100)), NPZ, "a.npz cannot be read: ..."),
    Mistake(
        "an array that its bytes do not fill",
        good(lying),
        NPZ,
        "a.npz cannot be read: x.npy says shape (99999999, 8, 8, 1) and has 192 bytes",
    ),
    Mistake(
        "an archive that would fill the memory",
        small_memory,
        NPZ,
        "a.npz cannot be read: it would fill 0.3 GiB, and there are 0.2 GiB of memory here",
    ),
    Mistake(
        "an array of Python objects",
        good(npz(y=np.array([{}, {}], object))),
        NPZ,
        "a.npz cannot be read: y.npy holds Python objects, a pickle, which is not read",
    ),
    Mistake(
        "an array is missing",
        good(lambda: np.savez("a.npz", images=GREY)),
        NPZ,
        "a.npz has no array 'x', only images: it needs x and y",
    ),
    Mistake(
        "channels come first",
        good(npz(x=np.zeros((2, 1, 8, 8), np.uint8))),
        NPZ,
        "x in a.npz has shape (2, 1, 8, 8), channels first: transpose it to (n, height, width, channels)",
    ),
    Mistake(
        "whole numbers of other than 8 bits",
        good(npz(x=GREY.astype(int))),
        NPZ,
        "x in a.npz must be uint8, or floats in [0, 1]; got int64",
    ),
    Mistake(
        "pixels from 0 to 255 as floats",
        good(npz(x=np.array([0.0, 255.0]).repeat(64).reshape(2, 8, 8, 1))),
        NPZ,
        "x in a.npz must lie in [0, 1]; got values from 0 to 255: save pixels of 0 to 255 as uint8, or divide them by "
        "255",
    ),
    Mistake(
        "images that are normalised already",
        good(npz(x=np.array([-2.1, 2.6]).repeat(64).reshape(2, 8, 8, 1))),
        NPZ,
        "x in a.npz must lie in [0, 1]; got values from -2.1 to 2.6: normalise inside the network with --mean and "
        "--std, not in the data",
    ),
    Mistake(
        "not a number, or infinite, in an image",
        good(npz(x=np.array([0.5, np.inf]).repeat(64).reshape(2, 8, 8, 1))),
        NPZ,
        "x in a.npz has NaN or infinite values in row 1",
    ),
    Mistake(
        "labels that are no whole numbers",
        good(npz(y=[0.0, 1.0])),
        NPZ,
        "y in a.npz must be 2 integers, one an image; got float64 of shape (2,)",
    ),
    Mistake(
        "a label below 0",
        good(npz(y=[0, -1])),
        NPZ,
        "y in a.npz must be labels 0, 1, 2, ...; got -1 in row 1",
    ),
    Mistake(
        "a label that the network does not have",
        good(npz(y=[0, 10])),
        NPZ,
        "npz:a.npz has labels up to 10, tests.digits_net:Tiny has only 10 classes (instance 1)",
    ),
    Mistake(
        "an id twice in an archive",
        good(npz(id=["a", "a"])),
        NPZ,
        "ids of npz:a.npz must not repeat; 'a' occurs 2 times",
    ),
    Mistake(
        "no training rows in an archive",
        good(npz(split=["test", "test"])),
        NPZ,
        "split in a.npz must name 'train' for some rows; got test",
    ),
    # TensorFlow Datasets
    Mistake(
        "no such folder of data sets",
        good(),
        "--data tfds:toys --data-dir absent",
        "no data directory absent: --data-dir is the folder that holds toys/VERSION",
    ),
    Mistake(
        "a name that TFDS does not know",
        good(),
        "--data tfds:zebras --data-dir photos",
        "cannot open tfds:zebras: TFDS knows no data set or configuration of that name",
    ),
    Mistake(
        "a data set that is not prepared",
        good(),
        "--data tfds:mnist --data-dir photos",
        "tfds:mnist is not prepared: no data in .... Prepare it once, where TensorFlow is installed: python -c ...",
    ),
    Mistake(
        "a data set in another format",
        good(lambda: write_tfds(Path(), file_format="parquet")),
        "--data tfds:toys --data-dir .",
        "tfds:toys in ... is stored as parquet, which cannot be read by row: prepare it with "
        "file_format='array_record'",
    ),
    Mistake(
        "a damaged data set",
        good(lambda: write_tfds(Path()), cut("toys/1.0.0/toys-train.array_record-00000-of-00001", -70_000)),
        "--data tfds:toys --data-dir .",
        "cannot read toys-train.array_record-00000-of-00001 in ...: damaged or cut short (...)",
    ),
    # what is to be forgotten
    Mistake(
        "an unknown id",
        good(),
        f"{PHOTOS} --forget cat/1.png",
        "unknown id 'cat/1.png': ids of folder:photos look like d0/10.png or d9/9.png",
    ),
    Mistake(
        "a file name that several have",
        good(file("photos/d2/1.png", digit(2))),
        f"{PHOTOS} --forget 1.png",
        "'1.png' names 2 instances (d1/1.png, d2/1.png): write the whole id",
    ),
    Mistake(
        "a row that is not there",
        good(),
        f"{PHOTOS} --forget row:3,10",
        "row 10 is out of range: folder:photos has rows 0 to 9",
    ),
    Mistake(
        "a row that is no number",
        good(),
        f"{PHOTOS} --forget row:x",
        "row: takes numbers of rows, such as row:17,18; got 'x'",
    ),
    Mistake(
        "a query on no column",
        good(table("file,label,person", f"{ONE},4711")),
        f"{TABLE} --forget persn=4711",
        "unknown id 'persn=4711', and csv:t.csv has no column 'persn', only file, label, person, split",
    ),
    Mistake(
        "a query that nothing answers",
        good(table("file,label,person", f"{ONE},4711")),
        f"{TABLE} --forget person=4712",
        "the forget set is empty: no training instance of csv:t.csv has person='4712'; there are 4711",
    ),
    Mistake(
        "an instance of the test split",
        good(table("file,label,split", f"{ONE},train", "pictures/2.png,2,test")),
        f"{TABLE} --forget 2.png",
        "instance 2.png is in the split 'test': only training instances can be forgotten",
    ),
    Mistake(
        "an instance named twice",
        good(),
        f"{PHOTOS} --forget 1.png,d1/1.png",
        "instance 1.png = d1/1.png is named 2 times: name each instance once",
    ),
    Mistake(
        "an instance that was skipped",
        good(file("photos/d1/x.png", "")),
        f"{PHOTOS} --on-bad-image skip --forget x.png",
        "instance x.png was skipped, it is empty: it cannot be forgotten unseen",
    ),
    Mistake(
        "an empty cell in a list of ids",
        good(file("ids.csv", "id,name\n,Ann\n")),
        f"{PHOTOS} --forget @ids.csv",
        "ids.csv, line 2: id is empty",
    ),
    Mistake(
        "no training split",
        good(table("file,label,split", f"{ONE},test")),
        f"{TABLE} --forget all",
        "csv:t.csv has no training instances, only test",
    ),
    # data that lie apart
    Mistake(
        "floats of another size than the network's",
        good(lambda: np.savez("big.npz", x=np.zeros((2, 9, 9, 1)), y=np.zeros(2, int))),
        f"{PHOTOS} --test-data npz:big.npz",
        "x in big.npz holds floats of 9x9x1, the network takes 8x8x1: save them as uint8, which are resized, "
        "or in that size",
    ),
    Mistake(
        "a folder for data that need none",
        good(),
        f"{PHOTOS} --data-dir photos",
        "--data-dir is for tfds: and csv: sources only; got 'photos' with 'folder:photos'",
    ),
    Mistake(
        "an unknown kind of data",
        good(),
        "--data photos",
        "unknown data source 'photos': did you mean folder:photos? give digits, folder:DIR, csv:FILE, npz:FILE, "
        "parquet:FILE_OR_DIR, tfds:NAME or tfds:NAME:CONFIG",
    ),
)


def rows(mistakes: Iterable[Any] = MISTAKES) -> list[str]:
    """Return the lines of a table in docs/errors.md."""
    cells = ((m.what, m.said.replace("HERE/", "").replace("|", "\\|")) for m in mistakes)
    return ["| what is wrong | what is said |", "|---|---|", *(f"| {what} | `{said}` |" for what, said in cells)]


if __name__ == "__main__":
    print("\n".join(rows()))

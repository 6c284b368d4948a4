"""What a file is by what is in it: names lie, and each library says something else of a file that is not its own."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from jaxunlearn import _files

Kind: TypeAlias = Literal["safetensors", "npz", "msgpack", "PyTorch"]

#: Names of files whose pickles are read.
TORCH = (".pth", ".pt", ".th", ".tar", ".ckpt", ".bin")
#: Beginnings of what is often found in the place of weights, what it is, and what to do.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file it stands for", "run git lfs pull where it lies"),
    (b"<!doctype", "a web page", "download the file itself, not the page that shows it"),
    (b"<html", "a web page", "download the file itself, not the page that shows it"),
    (b"\xff\xd8\xff", "a JPEG picture", "name the file of weights"),
    (b"\x89png", "a PNG picture", "name the file of weights"),
    (b"%pdf", "a PDF document", "name the file of weights"),
    (b"\x89hdf", "an HDF5 file, as Keras writes", "save its arrays by layer and variable as .npz"),
    (b"\x93numpy", "a single array", "save all arrays by name as .npz"),
    (b"gguf", "a GGUF file", "save the network as .safetensors"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it"),
    (b"bzh", "compressed with bzip2", "unpack it"),
    (b"\xfd7zxz", "compressed with xz", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"rar!", "a RAR archive", "unpack it"),
)
AGAIN = "download or save it anew"


def kind_of(path: Path) -> Kind:
    """Return by which library a file is to be read, whatever its name says.

    Pickles are the exception: they are read only from files whose names say so, so
    that nobody who asks for .safetensors is given one.

    Raises:
      OSError: as `jaxunlearn._files.regular`.
      ValueError: the file is empty or something else; what it is, and what to do.
    """
    if not _files.regular(path):
        raise ValueError(f"{path} is empty: {AGAIN}")
    with path.open("rb") as file:
        start = file.read(512)
    if start[8:9] == b"{":  # after eight bytes that say how long the header is
        return "safetensors"
    if _is_map_of_names(start):
        return "msgpack"
    what, remedy = _in_zip(path, start) if start.startswith(b"PK\3\4") else _other(start)
    if what == "npz":
        return "npz"
    if what == "PyTorch":
        if path.suffix.lower() not in TORCH:
            raise ValueError(
                f"{path} is a PyTorch pickle, which its name does not say: rename it to {path.stem}.pth if you know "
                "where it comes from, or save it as .safetensors"
            )
        return "PyTorch"
    raise ValueError(f"{path} is {what}: {remedy}")


def _is_map_of_names(start: bytes) -> bool:
    """Return whether a file begins as msgpack writes a dict with at least one entry whose key is text."""
    after = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else len(start))
    key = start[after : after + 1]
    return b"\xa0" <= key <= b"\xbf" or key == b"\xd9"


def _other(start: bytes) -> tuple[str, str]:
    """Return "PyTorch" for a bare pickle, else what a file is and what to do."""
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "PyTorch", ""
    lower = start.lstrip().lower()
    for magic, what, remedy in _OTHERS:
        if lower.startswith(magic):
            return what, remedy
    if start[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    return f"no weights, or damaged (it begins with {start[:12]!r})", f"{AGAIN}, as .safetensors, .npz or .pth"


def _in_zip(path: Path, start: bytes) -> tuple[str, str]:
    """Return a kind by the names of an archive's members, else what it is and what to do."""
    length = int.from_bytes(start[26:28], "little")
    names = [start[30 : 30 + length].decode("utf-8", "replace")]  # all that is known of one that is cut short
    try:
        with zipfile.ZipFile(path) as archive:
            names += archive.namelist()
    except Exception:  # the library that it is of says what is wrong
        pass
    if any(name.endswith(".npy") for name in names):
        return "npz", ""
    if any(name.endswith("/constants.pkl") for name in names):
        remedy = "in PyTorch, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') makes one of tensors alone"
        return "a TorchScript archive, which holds code", remedy
    if any(name.endswith("/data.pkl") for name in names):
        return "PyTorch", ""
    if "model.weights.h5" in names:
        return "a model of Keras", "save its arrays by layer and variable as .npz"
    return f"a zip archive of something else (its first file is {names[0]!r}), or damaged", "unpack it, if it is whole"

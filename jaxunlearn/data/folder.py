"""A folder of pictures: ``class/name.jpg``, or ``train/class/name.jpg`` and ``test/class/name.jpg``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.files import fault_of, faults_of, printable, shown, source_of
from jaxunlearn.data.labels import class_order

#: Folders that are splits and not classes, where "train" is among them and no other folder beside them.
SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_JUNK = ("thumbs.db", "desktop.ini", "icon\r")


def open_folder(path: str, reading: Reading | None = None) -> Source:
    """Open a folder of pictures, the name of whose folder is their class.

    Ids are paths from the folder, with ``/`` between folders: ``cat/1.jpg``.
    Rows are in the order of their ids. A class folder may have folders inside.
    Hidden files are passed over, and files that lie beside the class folders
    and are no pictures; a file inside that is no picture is a bad picture.
    Symbolic links are followed.

    Raises:
      ValueError: no such folder, no picture in it, a picture in no class folder, classes whose
        order is not known (`jaxunlearn.data.labels.class_order`), a loop of symbolic links.
      PictureError: a picture that cannot be read, as far as it shows before it is decoded.
    """
    reading = reading or Reading()
    root, name = Path(path).expanduser(), f"folder:{path}"
    if not root.is_dir():
        raise ValueError(f"no folder {path}" if not root.exists() else f"{path} is a file, not a folder")
    found = sorted(_walk(root), key=lambda parts: "/".join(parts))
    paths = [root.joinpath(*parts) for parts in found]
    if not reading.labelled:
        keep = [i for i, parts in enumerate(found) if len(parts) > 1 or fault_of(paths[i]) is None]
        found, paths = [found[i] for i in keep], [paths[i] for i in keep]
        if not found:
            raise ValueError(f"{path} has no pictures in it")
        return _source(name, found, paths, ["train"] * len(found), [], reading)

    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    in_splits = "train" in folders and folders <= set(SPLITS)
    depth = 2 if in_splits else 1
    keep = []
    for i, parts in enumerate(found):
        if len(parts) > depth:
            keep.append(i)
        elif fault_of(paths[i]) is None:
            raise ValueError(
                f"{shown(paths[i])} lies in no class folder: put it into {'train/' * in_splits}CLASS/, "
                "or say its class with csv:FILE"
            )
    found, paths = [found[i] for i in keep], [paths[i] for i in keep]
    if not found:
        raise ValueError(f"{path} has no pictures in it: they must lie in folders of their class, {path}/CLASS/1.jpg")
    split = [SPLITS[parts[0]] if in_splits else "train" for parts in found]
    return _source(name, found, paths, split, [printable(parts[depth - 1]) for parts in found], reading)


def _source(
    name: str, found: list[tuple[str, ...]], paths: list[Path], split: list[str], classes: list[str], reading: Reading
) -> Source:
    order = class_order(classes, reading, name) if classes else None
    return source_of(
        name=name,
        contents=lambda rows: [paths[row] for row in rows],
        name_of_row=lambda row: shown(paths[row]),
        ids=[printable("/".join(parts)) for parts in found],
        labels=np.array([order.label[c] for c in classes] if order else np.zeros(len(found), int)),
        order=order,
        split=split,
        reading=reading,
        columns={"class": np.array(classes)} if classes else {},
        faults=faults_of(paths),
        files=paths,
    )


def _walk(root: Path) -> Iterator[tuple[str, ...]]:
    """Yield the parts of the path of every file below a folder that is not hidden."""
    stack: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    while stack:
        parts, above = stack.pop()
        folder = root.joinpath(*parts)
        try:
            here = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ValueError(f"cannot read the folder {shown(folder)}: {error.strerror}") from error
        key = (here.st_dev, here.st_ino)
        if key in above:
            raise ValueError(f"{shown(folder)} is a symbolic link to a folder that it lies in, a loop: remove it")
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            inner = (*parts, entry.name)
            if _is_folder(entry):
                stack.append((inner, above | {key}))
            else:
                yield inner


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: the fault of a file
        return False

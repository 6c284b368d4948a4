"""Which output of the network a class name stands for; never a guess."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxunlearn import _files
from jaxunlearn.data._source import Reading


def how(reading: Reading) -> str:
    """Return what is to be given where the order of the classes is not known, on the command line or in Python."""
    if reading.flags:
        return "give --classes FILE: the network's class names, one a line, in the order of its outputs"
    return "give class_names: the names of the network's classes, in the order of its outputs"


class Order(NamedTuple):
    """Labels of class names.

    Attributes:
      label: by name.
      names: one a label, or None where labels are plain numbers.
      num_classes: C.
      how: how they were found, for the reader.
    """

    label: dict[str, int]
    names: tuple[str, ...] | None
    num_classes: int
    how: str


def class_order(found: Iterable[str], reading: Reading, where: str, at: Callable[[str], str] | None = None) -> Order:
    """Return the labels of the class names of a data set.

    Plain numbers are labels as they are, unless the names in order are known
    and hold them. Other names are looked up in the order that is known; where
    none is, they sort to labels 0, 1, ... if there are as many as outputs.

    Args:
      found: the names.
      reading: with what is known of the network's classes.
      where: what a message calls the data set.
      at: ``at(name)``, what it calls the first place that has a name; default: the data set.

    Raises:
      ValueError: a name that is not known, a label out of range, or as many names as do not tell their order.

    >>> class_order(["cow", "ant"], Reading(num_classes=2), "folder:a").label
    {'ant': 0, 'cow': 1}
    >>> class_order(["cow", "ant"], Reading(num_classes=3), "folder:a")
    Traceback (most recent call last):
    ...
    ValueError: folder:a has 2 classes (ant, cow), the network 3: give --classes FILE: ...
    """
    names = sorted(set(found))
    shown = ", ".join(map(_files.printable, names[:5])) + (", ..." if len(names) > 5 else "")
    known, count, at = reading.classes, reading.num_classes, at or (lambda name: where)
    below = [name for name in names if name.startswith("-") and name not in (known or ())]
    if below and _numbers([name.removeprefix("-") for name in names]):
        raise ValueError(f"label {below[0]} of {at(below[0])} is below 0: leave out what has no label, or name classes")
    if known is not None:
        places = _places(known)
        missing = [name for name in names if name not in places]
        if not missing:
            label = {name: places[name] for name in names}
            _distinct(label, where)
            return Order(label, known, len(known), f"{len(known)}, in the order of {reading.classes_from}")
        if len(missing) < len(names) or not _numbers(names):
            raise ValueError(
                f"class {missing[0]!r} of {at(missing[0])} is not among the {len(known)} of {reading.classes_from} "
                f"({', '.join(map(_files.printable, known[:3]))}, ...): "
                + (how(reading) if reading.flags and not reading.classes_from.startswith("--") else "add it")
            )
    if _numbers(names):
        label = {name: int(name) for name in names}
        limit = count or (len(known) if known else None)
        for name, value in label.items():
            if limit is not None and value >= limit:
                raise ValueError(
                    f"label {name} of {at(name)} is out of range: the network has outputs 0 to {limit - 1}"
                    + (f" (if it is a name and not a number, {how(reading)})" if known is None else "")
                )
        _distinct(label, where)
        return Order(label, known, limit or max(label.values()) + 1, "labels are the numbers that are given")
    if count is not None and len(names) != count:
        few = "a class" if len(names) == 1 else f"{len(names)} classes"
        raise ValueError(f"{where} has {few} ({shown}), the network {count}: {how(reading)}")
    label = {name: number for number, name in enumerate(names)}
    return Order(label, tuple(names), len(names), f"{len(names)}, their names sorted: {shown}")


def read_classes(path: str) -> tuple[str, ...]:
    """Return the class names of a file, one a line.

    Raises:
      ValueError: no such file, not UTF-8, empty, an empty line between names, or a name twice.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise ValueError(f"cannot read --classes {path}: {reason}") from error
    names = tuple(line.strip() for line in lines)
    if not any(names):
        raise ValueError(f"--classes {path} is empty: it must hold one class name a line")
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"--classes {path}, line {number} is empty: each line is the name of one output")
        if names.index(name) < number - 1:
            raise ValueError(f"--classes {path}, line {number}: {name!r} is in line {names.index(name) + 1}, too")
    return names


def _numbers(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\d{1,9}", name, re.ASCII) for name in names)


def _places(known: Sequence[str]) -> dict[str, int]:
    """Return the label of each name, and of each of the synonyms ("tench, Tinca tinca") that is one class's alone."""
    places: dict[str, int] = {}
    shared = set()
    for number, name in enumerate(known):
        for part in name.split(", ") if ", " in name else ():
            if places.setdefault(part, number) != number:
                shared.add(part)
    return {part: n for part, n in places.items() if part not in shared} | {name: n for n, name in enumerate(known)}


def _distinct(label: dict[str, int], where: str) -> None:
    spelt: dict[int, str] = {}
    for name, value in label.items():
        if spelt.setdefault(value, name) != name:
            raise ValueError(
                f"classes {spelt[value]!r} and {name!r} of {where} are the same label, {value}: rename one"
            )

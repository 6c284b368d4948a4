"""Open the data that a command is to work on, and the network that takes them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _files, _progress, data as data_sources, report
from jaxunlearn._types import Model, Recipe
from jaxunlearn.cli import _errors, _model
from jaxunlearn.data import PictureError, Reading, Source
from jaxunlearn.job import opening
from jaxunlearn.job.request import public_rows
from jaxunlearn.report.folder import TRAINING

MISSING = f"--data is missing: {data_sources.KINDS}"
#: Flags without which a run's data cannot be opened again; a run keeps them as ``extras["reading"]``.
FLAGS = ("data_dir", "retain_data", "test_data", "on_bad_image")
#: Pictures that are looked at between two reports of progress.
_CHUNK = 256


def open_with_model(args: argparse.Namespace, run: Any = None, *, tell: bool = False) -> tuple[Source, Model]:
    """Return the data set and the classifier, checked to fit each other.

    Pictures are read as the network's recipe says, and class names
    need its number of outputs, so the network comes first; one of the user's
    own that takes its size from the data comes after them.

    Args:
      args: flags of `jaxunlearn.cli._flags.add_model_flags` and ``add_data_flags``.
      run: a `jaxunlearn.report.Run` to take the checkpoint, and by default the data, of.
      tell: whether to tell of skipped and resized images on standard error (a plan tells of them, where there is one).

    Raises:
      ValueError, UserError: data or weights that are absent, damaged or do not fit.
    """
    spec = args.data if args.data is not None or run is None else run.results.get("data")
    if spec is None:
        raise ValueError(MISSING)
    args = _with_kept(args, run)
    recipe = _model.recipe_of(args, run)
    model = None if recipe is None else _model.load(args, None, run)
    source = _joined(args, spec, _reading(args, recipe, model))
    if model is None:
        model = _model.load(args, source, run)
        other = source.num_classes != model.spec.num_classes
        if other and "classes" in dict(source.notes):  # their order was another's
            source = _joined(args, spec, _reading(args, model.spec.recipe, model))
    for name, text in source.notes:
        if tell and name in ("skipped", "images"):
            _errors.say(f"{source.name}: {name} {text}")
    _model.check_fit(model, source)
    return source, model


def open_source(args: argparse.Namespace, spec: str | None, run: Any = None) -> Source:
    """Return a data set, its pictures read as the network that the flags or the run name takes them.

    The data decide how many classes there are, and images of one size the network's if no flag does: this is for a
    network that is yet to be trained.
    """
    if spec is None:
        raise ValueError(MISSING)
    reading = _reading(args, _model.recipe_of(args, run), None)
    return _open(args, spec, dataclasses.replace(reading, adapts=args.input_shape is None))


def public(args: argparse.Namespace, model: Model, seed: int) -> np.ndarray | None:
    """Return the user's images of ``--public``, as `public_rows` draws them; None where none are given.

    Raises:
      ValueError: no such data, images of another size or scale, a picture that cannot be read.
    """
    if args.public is None:
        return None
    reading = _reading(args, model.spec.recipe, model)
    source = _open(args, args.public, reading, data_sources.open_unlabelled)
    if source.input_shape != model.spec.input_shape:
        have, need = ("x".join(map(str, shape)) for shape in (source.input_shape, model.spec.input_shape))
        raise ValueError(f"the images of --public {args.public} are {have}, the network takes {need}")
    rows = source.splits["train"]
    return source.images(rows[public_rows(len(rows), seed)])


def rows_of(source: Source, split: str) -> np.ndarray:
    """Return the rows of a split; raise a ValueError where there is none of that name, or nothing in it."""
    if split not in source.splits:
        raise ValueError(f"{source.name} has no split {split!r}, only {', '.join(source.splits)}")
    rows = source.splits[split]
    if not len(rows):
        raise ValueError(f"{source.name} has no instances in its split {split!r}, only in {source.filled}")
    return rows


def look(source: Source, sets: Mapping[str, np.ndarray]) -> None:
    """Read the images of some sets before the work, where they stay in memory, so that a bad one is found now."""
    if source.kept:
        rows = np.unique(np.concatenate(list(sets.values())))
        for start in range(0, len(rows), _CHUNK):
            source.read(rows[start : start + _CHUNK])
            _progress.report("reading images", min(start + _CHUNK, len(rows)), len(rows))


def record(args: argparse.Namespace, source: Source, run: Any = None) -> dict[str, Any]:
    """Return what a run must keep to open its data again, and what was skipped."""
    kept = {name: getattr(_with_kept(args, run), name, None) for name in FLAGS}
    return {name: value for name, value in kept.items() if value is not None} | opening.facts_of(source)


def about(source: Source, measured: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """Return lines on the data for the reader: how many, how they were read, which set is not there to be measured."""
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in source.splits.items() if len(rows))
    lines = [("data", f"{source.name}: {sizes}"), *source.notes]
    absent = [] if measured is None else [name for name in ("retain", "test") if name not in measured]
    if absent:
        flags = " and ".join(f"--{name}-data" for name in absent)
        sets = " and ".join({"retain": "D_r", "test": "D_test"}[name] for name in absent)
        lines.append(("unmeasured", f"{sets}: there are no other images; {flags} would give them"))
    return lines


def _joined(args: argparse.Namespace, spec: str, reading: Reading) -> Source:
    """Return the data, with the retain and the test set that lie elsewhere."""
    source = _open(args, spec, reading)
    others = {
        name: _open(args, getattr(args, f"{name}_data"), reading)
        for name in ("retain", "test")
        if getattr(args, f"{name}_data", None) is not None
    }
    return data_sources.join(source, **others) if others else source


def _open(
    args: argparse.Namespace,
    spec: str,
    reading: Reading,
    opener: Callable[..., Source] = data_sources.open_source,
) -> Source:
    """Return a source whose bad pictures are the user's mistake whenever they are met."""
    specs = (getattr(args, name, None) for name in ("data", "retain_data", "test_data", "public"))
    in_vain = not any(_takes_folder(other or "") for other in (spec, *specs))
    folder = args.data_dir if in_vain or _takes_folder(spec) else None
    source = opener(spec, folder, reading=reading)
    return dataclasses.replace(source, read=_Told(source.read))


def _takes_folder(spec: str) -> bool:
    return spec.partition(":")[0] in data_sources.WITH_DIR


class _Told:
    """Read rows; a picture that cannot be read is a `UserError`."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self._read = read

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        try:
            return self._read(rows)
        except PictureError as error:
            raise _errors.UserError(str(error)) from error


def _with_kept(args: argparse.Namespace, run: Any) -> argparse.Namespace:
    """Return the flags, with those that a run was given where none are given now."""
    kept = {} if run is None else _kept_of(run)
    if not kept:
        return args
    filled = argparse.Namespace(**vars(args))
    if args.data is None:
        for name in FLAGS:
            if getattr(args, name, None) is None:
                setattr(filled, name, kept.get(name))
    filled.kept_classes = kept.get("classes")
    return filled


def _reading(args: argparse.Namespace, recipe: Recipe | None, model: Model | None) -> Reading:
    """Return how pictures in files become what a network takes, by the flags."""
    classes, origin = _classes(args, None if model is None else model.spec.num_classes)
    bad: Any = getattr(args, "on_bad_image", None) or "fail"
    return opening.reading_for(recipe, model, classes=classes, classes_from=origin, on_bad_image=bad)


def _classes(args: argparse.Namespace, count: int | None) -> tuple[tuple[str, ...] | None, str]:
    """Return the names of the outputs in their order and where they are from: a flag, an earlier run, Hugging Face."""
    file = getattr(args, "classes", None)
    if file is not None:
        names, origin = data_sources.read_classes(file), f"--classes {file}"
        if count is not None and len(names) != count:
            raise ValueError(f"{origin} has {len(names)} names, the network {count} outputs: it must name each")
        return names, origin
    weights = getattr(args, "weights", None)
    kept = getattr(args, "kept_classes", None) or _from_folder(weights)
    if kept:
        return tuple(map(str, kept)), "the run" if weights is None else str(weights)
    found = _from_hugging_face(weights)
    if found is not None and (count is None or len(found) == count):
        return found, f"{args.weights}/config.json"
    return None, "--classes"


def _from_folder(weights: str | None) -> Any:
    """Return the class names that a run or a training kept whose folder is given as weights, or None."""
    path = None if weights is None else Path(weights).expanduser()
    try:
        if path is None or not report.is_run(path):
            made = {} if path is None else _files.read_json(path / TRAINING)
            return made["reading"].get("classes")
        return _kept_of(report.read_run(path)).get("classes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # its checkpoint may be whole
        return None


def _kept_of(run: Any) -> Mapping[str, Any]:
    return (run.results.get("extras") or {}).get("reading") or {}


def _from_hugging_face(weights: str | None) -> tuple[str, ...] | None:
    """Return the class names of the ``config.json`` beside the weights, or None where there are no real ones."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    try:
        config = _files.read_json((path if path.is_dir() else path.parent) / "config.json")
        given = {int(number): str(name) for number, name in config["id2label"].items()}
        names = tuple(given[number] for number in range(len(given)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    made_up = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return None if made_up or not names or len(set(names)) < len(names) else names

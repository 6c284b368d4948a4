"""Load the classifier that a command is to work on."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import _tree, checkpoint, convert, models
from jaxunlearn._types import Model, Recipe
from jaxunlearn.cli import _errors
from jaxunlearn.data import Source


def load(args: argparse.Namespace, source: Source | None, run: Any = None) -> Model:
    """Load a model from a run folder, a checkpoint folder or a file of weights.

    Args:
      args: with ``arch``, ``weights``, ``mean``, ``std``.
      source: the data, whose image size and number of classes a network of the user's own takes.
      run: a `jaxunlearn.report.Run` to take the checkpoint of, or None.

    Raises:
      UserError: flags that contradict each other, or weights that are absent, damaged or do not fit.
    """
    with _errors.user_input():
        if run is not None:
            if args.weights is not None:
                raise ValueError("give a run or --weights, not both: a run brings its own checkpoint")
            return _from_folder(args, run.checkpoint)
        if args.weights is None:
            raise ValueError("--weights is missing: a file of weights, or the folder of a checkpoint or run")
        path = Path(args.weights).expanduser()
        if path.is_dir():
            return _from_folder(args, _checkpoint_in(path))
        if args.arch is None:
            raise ValueError(f"--arch is missing: which network are the weights of {path.name} for?")
        return _from_file(args, path, source)


def recipe_of(args: argparse.Namespace, run: Any = None) -> Recipe | None:
    """Return the recipe of the network that flags or a run name, without its weights; None where the data decide.

    Raises:
      UserError: an unknown network, or a folder that is no checkpoint.
    """
    with _errors.user_input():
        path = None if args.weights is None else Path(args.weights).expanduser()
        if run is not None:
            return checkpoint.describe(run.checkpoint)["recipe"]  # type: ignore[no-any-return]
        if path is not None and path.is_dir():
            return checkpoint.describe(_checkpoint_in(path))["recipe"]  # type: ignore[no-any-return]
        if args.arch is None or ":" in args.arch:
            return None
        return models.recipe(args.arch, mean=args.mean, std=args.std)


def describe(model: Model) -> str:
    """Return a line on the network: name, size, normalisation."""
    recipe = model.spec.recipe
    name = recipe.arch if recipe is not None else "network"
    if recipe is not None and recipe.wrappers:
        name += f" inside {', '.join(wrapper for wrapper, _ in recipe.wrappers)}"
    text = f"{name}, {_tree.size(model.params):,} parameters, {model.spec.num_classes} classes"
    if recipe is not None and recipe.mean is not None and recipe.std is not None:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (recipe.mean, recipe.std))
        text += f", inputs normalised by mean {mean}, std {std}"
    return text


def _checkpoint_in(folder: Path) -> Path:
    """Return the checkpoint that the folder of a run or of a training has, or the folder itself."""
    inner = folder / "checkpoint"
    return inner if inner.is_dir() else folder


def _from_folder(args: argparse.Namespace, path: Path) -> Model:
    if args.mean is not None or args.std is not None:
        raise ValueError("--mean and --std go with a file of weights; a checkpoint has its own normalisation")
    arch = checkpoint.describe(path)["recipe"].arch
    if args.arch not in (None, arch):
        raise ValueError(f"--arch is {args.arch}, but {path} holds a {arch}")
    return checkpoint.load(path, models.from_recipe)


def _from_file(args: argparse.Namespace, path: Path, source: Source | None) -> Model:
    own = ":" in args.arch and source is not None
    recipe = models.recipe(
        args.arch,
        num_classes=source.num_classes if own and source else None,
        input_shape=source.input_shape if own and source else None,
        mean=args.mean,
        std=args.std,
    )
    tensors = convert.read_state_dict(path)
    # The weights know how many classes there are; the data may show only some of them.
    head = models.from_recipe(recipe, abstract=True).spec.head
    count = convert.classes(tensors, head) if head else None
    if count not in (None, dict(recipe.kwargs)["num_classes"]):
        recipe = models.recipe(args.arch, num_classes=count, mean=args.mean, std=args.std)
    try:
        return convert.from_named(tensors, models.from_recipe(recipe, abstract=True))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def origin(args: argparse.Namespace, model: Model, run: Any = None) -> dict[str, str]:
    """Return where the network before the first of several requests lies, and its digest; a run passes them on."""
    if run is not None and run.results.get("origin"):
        return dict(run.results["origin"])
    path = run.path if run is not None else Path(args.weights).expanduser().resolve()
    return {"weights": str(path), "digest": _tree.model_digest(model)}


def original(origin: Mapping[str, str], like: Model) -> Model | None:
    """Return the network that `origin` tells of, or None where its file is gone or is another one's by now."""
    path = Path(origin["weights"])
    try:
        if path.is_dir():
            found = checkpoint.load(_checkpoint_in(path), models.from_recipe)
        else:
            recipe = like.spec.recipe
            if recipe is None:
                return None
            recipe = dataclasses.replace(recipe, wrappers=())  # a file of weights is of a network by itself
            found = convert.load_weights(path, recipe, models.from_recipe)
    except (OSError, ValueError):
        return None
    return found if _tree.model_digest(found) == origin["digest"] else None


def check_fit(model: Model, source: Source) -> None:
    """Raise a `UserError` unless a data set's images and labels are ones that the network takes."""
    name = model.spec.recipe.arch if model.spec.recipe is not None else "the network"
    if source.input_shape != model.spec.input_shape:
        have, need = ("x".join(map(str, shape)) for shape in (source.input_shape, model.spec.input_shape))
        raise _errors.UserError(f"the images of {source.name} are {have}, {name} takes {need}")
    largest = int(source.labels.max())
    if largest >= model.spec.num_classes:
        raise _errors.UserError(
            f"{source.name} has labels up to {largest}, {name} has only {model.spec.num_classes} classes"
        )

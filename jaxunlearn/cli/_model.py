"""Load the classifier that a command is to work on."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _tree, artefacts, checkpoint, convert, models
from jaxunlearn._types import Artefact, Model, Recipe
from jaxunlearn.cli import _errors
from jaxunlearn.convert import huggingface
from jaxunlearn.data import Source
from jaxunlearn.job import opening
from jaxunlearn.job.previous import checkpoint_in
from jaxunlearn.report.folder import recovered

#: Networks of the registry that are tried where weights do not fit the one that was named.
_TRIED = 6


def load(args: argparse.Namespace, source: Source | None, run: Any = None) -> Model:
    """Load a model from a run folder, a checkpoint folder, a folder of Transformers or a file of weights.

    Args:
      args: flags of `jaxunlearn.cli._flags.add_model_flags`.
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
        if huggingface.is_folder(path):
            return convert.load_weights(path, _recipe_in(args, path), builder(args))
        if path.is_dir():
            return _from_folder(args, checkpoint_in(path))
        if args.arch is None:
            fitting = _fitting(convert.read_state_dict(path))
            asked = f"--arch is missing: which network are the weights of {path.name} for?"
            raise ValueError(asked + (f" They fit {fitting}" if fitting else ""))
        return _from_file(args, path, source)


def offered(files: Sequence[str], model: Model) -> dict[str, Artefact]:
    """Return the artefacts of ``--artefact`` by kind, in their order; raise ValueError for another model's, or two."""
    found: dict[str, Artefact] = {}
    for file in files:
        artefact = artefacts.load(file, model=model)
        if artefact.kind in found:
            raise ValueError(f"--artefact {file} is a second one of kind {artefact.kind!r}: give one of a kind")
        found[artefact.kind] = artefact
    return found


def builder(args: argparse.Namespace) -> Callable[..., Model]:
    """Return what builds a network from its recipe; a function of the user's own is called if the command names it."""
    return functools.partial(models.from_recipe, named=args.arch)


def from_checkpoint(args: argparse.Namespace, path: Path) -> Model:
    """Load a checkpoint's model.

    Raises:
      OSError, ValueError: as `jaxunlearn.checkpoint.load`; or ``--arch`` is another network.
    """
    if args.arch is not None:
        arch = checkpoint.describe(path)["recipe"].arch
        if models.canonical(args.arch) != arch:
            raise ValueError(f"--arch is {args.arch}, but {path} holds a {arch}")
    return checkpoint.load(path, builder(args))


def recipe_of(args: argparse.Namespace, run: Any = None) -> Recipe | None:
    """Return the recipe of the network that flags or a run name, without its weights; None where the data decide.

    Raises:
      UserError: an unknown network, or a folder that is no checkpoint.
    """
    with _errors.user_input():
        path = None if args.weights is None else Path(args.weights).expanduser()
        if path is not None:
            recovered(path)
        if run is not None:
            return checkpoint.describe(run.checkpoint)["recipe"]  # type: ignore[no-any-return]
        if path is not None and huggingface.is_folder(path):
            return _recipe_in(args, path)
        if path is not None and path.is_dir():
            return checkpoint.describe(checkpoint_in(path))["recipe"]  # type: ignore[no-any-return]
        if args.arch is None or (":" in args.arch and None in (args.num_classes, args.input_shape)):
            return None
        return _recipe(args)


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


def _recipe_in(args: argparse.Namespace, folder: Path) -> Recipe:
    """Return the recipe of a folder of Transformers; flags go before what its files say."""
    recipe = huggingface.read_recipe(folder)
    if args.arch not in (None, recipe.arch):
        raise ValueError(f"--arch is {args.arch}, but {folder} holds a {recipe.arch}: leave it out")
    _refuse_sizes(args, f"{folder} says itself what its network takes")
    if args.mean is None and args.std is None:
        return recipe
    return dataclasses.replace(recipe, mean=args.mean, std=args.std)


def _from_folder(args: argparse.Namespace, path: Path) -> Model:
    if args.mean is not None or args.std is not None:
        raise ValueError("--mean and --std go with a file of weights; a checkpoint has its own normalisation")
    _refuse_sizes(args, "a checkpoint knows its own network")
    return from_checkpoint(args, path)


def _refuse_sizes(args: argparse.Namespace, reason: str) -> None:
    if args.num_classes is not None or args.input_shape is not None:
        raise ValueError(f"--num-classes and --input-shape go with a file of weights; {reason}")


def _recipe(args: argparse.Namespace, source: Source | None = None, num_classes: int | None = None) -> Recipe:
    """Return the recipe that the flags name; what a network of the user's own lacks is taken from the data."""
    own = source is not None and ":" in args.arch
    shape = args.input_shape or (source.input_shape if own and source is not None else None)
    count = args.num_classes or num_classes or (source.num_classes if own and source is not None else None)
    return models.recipe(args.arch, num_classes=count, input_shape=shape, mean=args.mean, std=args.std)


def _from_file(args: argparse.Namespace, path: Path, source: Source | None) -> Model:
    recipe = _recipe(args, source)
    tensors = convert.read_state_dict(path)
    if args.num_classes is None:
        # The weights know how many classes there are; the data may show only some of them.
        layer = models.classifier(recipe, named=args.arch)
        count = convert.classes(tensors, layer) if layer else None
        if count not in (None, dict(recipe.kwargs)["num_classes"]):
            recipe = _recipe(args, source, count)
    try:
        return convert.from_named(tensors, builder(args)(recipe, abstract=True))
    except ValueError as error:
        fitting = _fitting(tensors, recipe.arch)
        raise ValueError(f"{path.name}: {error}" + (f"; they fit {fitting}" if fitting else "")) from error


def _fitting(tensors: Mapping[str, np.ndarray], apart: str = "") -> str:
    """Return the names of networks that weights fit, of those of about their size in the registry, or nothing.

    Args:
      tensors: of `jaxunlearn.convert.read_state_dict`.
      apart: a network that they do not fit.
    """
    size = sum(tensor.size for tensor in tensors.values())
    away = {name: abs(models.known(name).parameters - size) for name in models.names() if name != apart}
    found = []
    for name in sorted(away, key=lambda name: away[name])[:_TRIED]:
        if away[name] > size / 2:
            break
        recipe = models.recipe(name)
        layer = models.classifier(recipe)
        try:
            count = convert.classes(tensors, layer) if layer else None
            recipe = recipe if count is None else models.recipe(name, num_classes=count)
            convert.from_named(tensors, models.from_recipe(recipe, abstract=True))
        except ValueError:
            continue
        found.append(name)
    return " and ".join(found)


def origin(args: argparse.Namespace, model: Model, run: Any = None) -> dict[str, str] | None:
    """Return where the network before the first of several requests lies, and its digest; a run passes them on."""
    if run is not None:
        return run.results.get("origin")  # type: ignore[no-any-return]  # None of one made in Python: nobody knows
    return {"weights": str(Path(args.weights).expanduser().resolve()), "digest": _tree.model_digest(model)}


def check_fit(model: Model, source: Source) -> None:
    """Raise a `UserError` unless a data set's images and labels are ones that the network takes."""
    with _errors.user_input():
        opening.check_fit(model, source)

"""Open the data that a command is to work on, and the network that takes them."""

from __future__ import annotations

import argparse
from typing import Any

from jaxunlearn import data as data_sources
from jaxunlearn._types import Model
from jaxunlearn.cli import _model
from jaxunlearn.data import Reading, Source

MISSING = "--data is missing: digits, tfds:NAME or npz:FILE"


def open_with_model(args: argparse.Namespace, run: Any = None) -> tuple[Source, Model]:
    """Return the data set and the classifier, checked to fit each other.

    Pictures in files are read as the network's recipe says, so the recipe is found first.

    Args:
      args: flags of `jaxunlearn.cli._flags.add_model_flags` and ``add_data_flags``.
      run: a `jaxunlearn.report.Run` to take the checkpoint, and by default the data, of.

    Raises:
      ValueError, UserError: data or weights that are absent, damaged or do not fit.
    """
    spec = args.data if args.data is not None or run is None else run.results["data"]
    source = open_source(args, spec, run)
    model = _model.load(args, source, run)
    _model.check_fit(model, source)
    return source, model


def open_source(args: argparse.Namespace, spec: str | None, run: Any = None) -> Source:
    """Return a data set, its pictures read as the network that the flags or the run name takes them."""
    if spec is None:
        raise ValueError(MISSING)
    recipe = _model.recipe_of(args, run)
    reading = None if recipe is None else Reading(preprocess=recipe.preprocess)
    return data_sources.open_source(spec, args.data_dir, reading=reading)

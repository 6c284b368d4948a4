"""A data set as a network takes it: pictures in its size, labels in the order of its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxunlearn import _files, data as data_sources
from jaxunlearn._types import Model, Preprocess, Recipe
from jaxunlearn.data import Reading, Source


def reading_for(
    recipe: Recipe | None,
    model: Model | None,
    *,
    classes: Sequence[str] | None = None,
    classes_from: str = "--classes",
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> Reading:
    """Return how pictures in files become what a network takes; what no network says is left to the data.

    Args:
      recipe: of the network, or None.
      model: the network, or None where it is yet to be built.
      classes: the name of each output, in their order, or None.
      classes_from: what a message calls the place that they are from.
      on_bad_image: as in `jaxunlearn.data.Reading`.
    """
    shape = None if model is None else model.spec.input_shape
    if shape is None and recipe is not None:
        shape = dict(recipe.kwargs).get("input_shape")
    return Reading(
        preprocess=_preprocess(recipe, shape),
        channels=shape[2] if shape is not None and len(shape) == 3 else None,
        num_classes=None if model is None else model.spec.num_classes,
        classes=None if classes is None else tuple(map(str, classes)),
        classes_from=classes_from,
        on_bad_image=on_bad_image,
    )


def open_for(model: Model, spec: str, class_names: Sequence[str] = ()) -> Source:
    """Open the data set of a spec as a network takes it.

    Args:
      model: the network.
      spec: as for `jaxunlearn.data.open_source`.
      class_names: C names in the order of the outputs, for files whose classes have names; or none.

    Raises:
      ValueError: as `jaxunlearn.data.open_source`; or the data have class names of their own.
    """
    found = reading_for(model.spec.recipe, model, classes=class_names or None, classes_from="class_names")
    reading = dataclasses.replace(found, flags=False)
    source = data_sources.open_source(spec, reading=reading)
    if reading.classes is not None and source.class_names != reading.classes:
        raise ValueError(f"class_names goes with arrays and files: {source.name} has its own")
    return source


def check_fit(model: Model, source: Source) -> None:
    """Raise a ValueError unless a data set's images and labels are ones that the network takes."""
    name = model.spec.recipe.arch if model.spec.recipe is not None else "the network"
    if source.input_shape != model.spec.input_shape:
        have, need = ("x".join(map(str, shape)) for shape in (source.input_shape, model.spec.input_shape))
        raise ValueError(f"the images of {source.name} are {have}, {name} takes {need}")
    row = int(source.labels.argmax())
    largest, count = int(source.labels[row]), model.spec.num_classes
    if largest >= count:
        first = _files.printable(str(source.ids[row]))
        raise ValueError(
            f"{source.name} has labels up to {largest}, {name} has only {count} classes (instance {first})"
        )


def facts_of(source: Source) -> dict[str, Any]:
    """Return what a run keeps of its data, so that they are opened again as they were: class names, skipped rows."""
    names = list(source.class_names) if source.class_names else None
    skipped: Mapping[str, str] = {str(source.ids[row]): reason for row, reason in sorted(source.skipped.items())}
    return {name: value for name, value in (("classes", names), ("skipped", skipped)) if value}


def _preprocess(recipe: Recipe | None, shape: Any) -> Preprocess | None:
    """Return the recipe's, or its network's usual one where an older checkpoint has none."""
    if recipe is None or shape is None or len(shape) != 3:
        return None
    if recipe.preprocess is not None:
        return recipe.preprocess
    from jaxunlearn import models  # here: without flax, arrays and plain functions still work

    count = int(dict(recipe.kwargs)["num_classes"])
    return models.recipe(recipe.arch, num_classes=count, input_shape=tuple(shape)).preprocess

"""Mnemonic codes: a random image a class, mixed into training to stand for it later (Yamashita et al. 2024)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxunlearn import _tree, _validate
from jaxunlearn._types import Array, Artefact, Model


def draw_codes(key: Array, model: Model) -> np.ndarray:
    """Return a random image for each class, (C, *input_shape) float32 in the box of the network.

    The network proper sees values uniform in [0, 1]: a code is fed past the
    normalisation (published), which stands inside the network here, so a code
    is ``mean + std * U[0, 1]``, cut to the box. Without a recipe that tells of a
    normalisation it is uniform over the box.

    Args:
      key: typed key; the code of a class depends on it and the class.
      model: of what shape, and how normalised; its weights do not matter.
    """
    spec, recipe = model.spec, model.spec.recipe
    low, high = spec.box
    made = np.stack(
        [
            np.asarray(jax.random.uniform(jax.random.fold_in(key, label), spec.input_shape))
            for label in range(spec.num_classes)
        ]
    )
    if recipe is None or recipe.mean is None or recipe.std is None:
        return low + (high - low) * made
    mean, std = (np.asarray(values, made.dtype) for values in (recipe.mean, recipe.std))
    return np.clip(mean + std * made, low, high).astype(np.float32)


def codes_artefact(model: Model, codes: Any, labels: Any, *, mix: float) -> Artefact:
    """Return codes as an artefact of kind "codes", bound to the model that was trained with them.

    Codes of classes that no image has are left out: training never showed them. A network
    with more outputs than the data have classes is one with such classes.

    Args:
      model: after training.
      codes: of `draw_codes`, (C, *input_shape).
      labels: of the training set, (n,); so that a request is known to hold a whole class.
      mix: how often an image was replaced.

    Raises:
      ValueError: codes of another number or shape, labels out of range.
    """
    codes = np.asarray(codes, np.float32)
    _validate.inputs("codes", codes, model.spec)
    classes = model.spec.num_classes
    if len(codes) != classes:
        raise ValueError(f"codes must be one a class, {classes}; got {len(codes)}")
    _validate.labels("labels", labels, classes)
    instances = np.bincount(np.asarray(labels), minlength=classes).astype(np.int64)
    shown = np.flatnonzero(instances)
    return Artefact(
        kind="codes",
        version=1,
        arrays={
            "codes": codes[shown],
            "classes": shown.astype(np.int32),
            "instances": instances[shown],
        },
        meta={"mix": float(mix)},
        model_digest=_tree.model_digest(model),
    )

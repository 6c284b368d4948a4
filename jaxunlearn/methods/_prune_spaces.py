"""Where regions lie, and what there is of a patch already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn import _tree, inference, patches, wrappers
from jaxunlearn._types import Artefact, Model
from jaxunlearn.methods import _prune_groups as groups_
from jaxunlearn.wrappers import Patch

#: Conditions times inputs of a linear piece up to which it is the default, and up to which it is tried at all.
SMALL, LARGEST = 50_000, 4_000_000


def choose(model: Model, space: str) -> str:
    """Return where regions lie: as asked, or by the size of the network's linear pieces.

    Raises:
      ValueError: the network does not allow it; the message says why.
    """
    n, why = int(np.prod(model.spec.input_shape)), ""
    size = 0
    if space in ("auto", "input"):
        try:
            size = patches.count_conditions(model) * n
            why = "" if size else "the network is linear, so that a patch would change every answer"
        except patches.NotPiecewiseLinearError as error:
            why = str(error)
        if not why and size <= (SMALL if space == "auto" else LARGEST):
            return "input"
        if not why:
            why = f"its linear pieces are too large: {size // n:,} conditions on {n:,} inputs"
        if space == "input":
            raise ValueError(f"space 'input' is not for this network: {why}; use 'features'")
    if model.spec.head is None or model.spec.taps_fn is None:
        also = f"; and space 'input' is not for it: {why}" if why else ""
        raise ValueError(f"space 'features' needs a network that names its head and has taps{also}")
    wrappers.head_map(model)
    return "features"


def without_patch(model: Model) -> tuple[Model, Patch | None, dict[str, np.ndarray]]:
    """Return a network without its patch, and the patch; raise if there is one deeper inside."""
    outer = wrappers.unwrap(model)
    if any(isinstance(getattr(layer.apply_fn, "wrapper", None), Patch) for layer in wrappers.layers(model)[1:]):
        raise ValueError("the network has a patch inside another wrapper: a second one around it is not supported")
    if outer is None or not isinstance(outer.wrapper, Patch):
        return model, None, {}
    return outer.model, outer.wrapper, {name: np.asarray(value) for name, value in outer.own.items()}


def check_head(model: Model, x: np.ndarray) -> None:
    """Raise unless the logits are the affine map that the head is."""
    kernel, bias = (np.asarray(part) for part in wrappers.head_map(model))
    logits = inference.logits(model, x)
    apart = np.abs(patches.features(model, x) @ kernel + bias - logits).max()
    if not apart <= 1e-3 * max(1.0, np.abs(logits).max()):
        raise ValueError(f"the logits are not the head's affine map of its input, they differ by {apart:.3g}")


def facts(wrapper: Patch, own: Mapping[str, np.ndarray], model: Model, offered: Artefact | None) -> dict[str, Any]:
    """Return what is known of a patch that is there already: from its certificate, or that nothing is promised."""
    if offered is not None and offered.model_digest == _tree.model_digest(model):
        found = patches.Certificate.from_artefact(offered)
        if found.wrapper == wrapper and all((found.own[name] == own[name]).all() for name in own):
            return {name: np.asarray(getattr(found, name)) for name in ("targets", "taus", "points", "certified")}
    groups, regions, n = len(wrapper.members), sum(wrapper.members), wrapper.dim
    known: dict[str, Any] = {
        "targets": np.zeros(groups, np.int32),
        "taus": np.zeros(groups),
        "certified": np.zeros(regions, bool),
    }
    unknown = groups_.certificate(wrapper, own, known | {"points": np.zeros((regions, n))}, model)
    return known | {"points": np.array([unknown.polytope(region).centre()[0] for region in range(regions)])}

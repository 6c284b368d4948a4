"""A request after others: what they forgot, the network before the first of them, what they left behind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxunlearn import _tree, artefacts, report, wrappers
from jaxunlearn._types import Artefact, MethodSpec, Model
from jaxunlearn.data import Source
from jaxunlearn.job.request import Earlier, Request


def earlier_of(previous: report.Run, source: Source, rows: np.ndarray) -> list[Earlier]:
    """Return the instances that a run and the runs before it forgot, without those asked for again now.

    Raises:
      ValueError: an instance is not in the training split of this data set, or has another label there.
    """
    results, data = previous.results, previous.results.get("data")
    own = {"run": str(previous.path), "goal": results["goal"]}
    found = [*results.get("earlier", ()), *({**own, **instance} for instance in results["instances"])]
    items: dict[int, Earlier] = {}
    for entry in found:
        row = source.row_of(str(entry["id"]))
        if row is None or source.labels[row] != entry["label"] or row not in source.splits["train"]:
            raise ValueError(
                f"{previous.path} forgot the instance {entry['id']} with label {entry['label']} of {data}, "
                f"which {source.name} does not have: go on with the same data"
            )
        target = -1 if entry.get("target") is None else int(entry["target"])
        facts = {name: entry[name] for name in ("run", "goal", "label")}
        items[row] = Earlier(row=row, id=str(entry["id"]), target=target, **facts)
    asked = set(rows.tolist())
    return [item for row, item in items.items() if row not in asked]


def left_behind(previous: report.Run, model: Model) -> dict[str, Artefact]:
    """Return by kind the artefacts of a run's folder that are of this network, or of the one inside it."""
    known = {_tree.model_digest(layer) for layer in wrappers.layers(model)}  # a certificate is of the network inside
    found = map(artefacts.load, filter(artefacts.is_one, previous.artefacts))  # weights may be exported there, too
    return {artefact.kind: artefact for artefact in found if artefact.model_digest in known}


def original(origin: Mapping[str, str] | None, like: Model) -> Model | None:
    """Return the network before the first of several requests.

    Args:
      origin: where it lies, ``weights``, and its ``digest``; None where nobody knows.
      like: a network of the same recipe.

    Returns:
      The network, or None where its file is gone or is another one's by now.
    """
    from jaxunlearn import checkpoint, convert, models  # here: only these need flax and orbax

    if origin is None:
        return None
    path, recipe = Path(origin["weights"]), like.spec.recipe
    # Where `like` is of a function of the user's own, he has named that one in this very process.
    build = functools.partial(models.from_recipe, named=None if recipe is None else recipe.arch)
    try:
        if path.is_dir() and not convert.huggingface.is_folder(path):
            found = checkpoint.load(checkpoint_in(path), build)
        else:
            if recipe is None:
                return None
            recipe = dataclasses.replace(recipe, wrappers=())  # a file of weights is of a network by itself
            found = convert.load_weights(path, recipe, build)
    except (OSError, ValueError):
        return None
    return found if _tree.model_digest(found) == origin["digest"] else None


def checkpoint_in(folder: Path) -> Path:
    """Return the checkpoint that the folder of a run or of a training has, or the folder itself."""
    inner = folder / "checkpoint"
    return inner if inner.is_dir() else folder


def first_network(request: Request, spec: MethodSpec) -> str | None:
    """Return what became of the network before the first of several requests, if a method asks for it."""
    if not request.earlier or "original" not in spec.uses:
        return None
    return "gone" if request.original is None else "used"

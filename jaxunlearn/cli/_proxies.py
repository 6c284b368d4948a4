"""Images that stand in for data, for methods that use them: the user's own, or made from the network once and kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from jaxunlearn import _tree, artefacts, proxies
from jaxunlearn._types import Artefact, Model
from jaxunlearn.cli import _cache, _errors

SETTINGS = proxies.InversionConfig()


def inversion(model: Model, n: int) -> Artefact:
    """Return n images made from a network, from the user's cache where it has so many of this network.

    Shows progress as "inversion". Nothing is kept of an interrupted one.
    """
    found = kept(model, n)
    if found is not None:
        return found
    artefact = proxies.invert_artefact(jax.random.key(0), model, n, SETTINGS)
    path = _folder() / f"{artefact.model_digest[:16]}-{n}.safetensors"
    try:
        artefacts.save(path, artefact)
    except OSError as error:
        _errors.say(f"the images could not be kept in {path}: {_errors.describe(error)}")
    return artefact


def kept(model: Model, n: int) -> Artefact | None:
    """Return n of the images that were made from a network earlier, or None where there are not so many."""
    digest = _tree.model_digest(model)
    made = sorted((int(path.stem.rpartition("-")[2]), path) for path in _folder().glob(f"{digest[:16]}-*.safetensors"))
    for count, path in made:
        found = _read(path, model) if count >= n else None
        if found is not None:
            return dataclasses.replace(found, arrays={"x": found.arrays["x"][:n]})
    return None


def _folder() -> Path:
    return _cache.folder() / "inversion"


def _read(path: Path, model: Model) -> Artefact | None:
    """Return a kept artefact, or None where it is damaged or of another network or other settings."""
    try:
        found = artefacts.load(path, kind="proxies", model=model)
    except (OSError, ValueError):
        return None
    settings = dataclasses.asdict(SETTINGS)
    return found if all(found.meta.get(name) == value for name, value in settings.items()) else None

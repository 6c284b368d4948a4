"""Keep what training time leaves behind, and certificates, in one safetensors file each, bound to a model.

An artefact is data: named arrays, JSON-able facts, and the digest of the model
it was made from. It is refused for another model, and when a byte was changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _files, _tree
from jaxunlearn._types import Artefact, Model

_FORMAT = "jaxunlearn-artefact"
#: Of all of our kinds so far.
VERSION = 1
#: Kind -> what it is and how to make one, for the message of a method that lacks it.
KINDS: dict[str, str] = {
    "certificate": "what a patch promises; the method prune makes one, `jaxunlearn verify` checks it",
    "codes": "a random image a class, which only training with them gives (`jaxunlearn train --codes P`, or "
    "`training.train(codes=...)` and `proxies.codes_artefact`); mnemonic-free does without",
    "moments": "second moments of every layer's inputs, over the training images (`jaxunlearn moments`, or "
    "`curvature.moments_artefact`)",
    "proxies": "images made from the network (`--inversion N`, or `proxies.invert_artefact`)",
}


def save(path: str | os.PathLike[str], artefact: Artefact) -> None:
    """Write an artefact to a file, whole or not at all; the same artefact gives the same bytes.

    Args:
      path: the file; one that is there is replaced.
      artefact: its ``meta`` must be JSON-able.

    Raises:
      ValueError: ``meta`` is not JSON.
      OSError: the file cannot be written.
    """
    import safetensors.numpy

    path = Path(path)
    try:
        facts = {
            "format": _FORMAT,
            "kind": artefact.kind,
            "version": artefact.version,
            "meta": json.loads(json.dumps(dict(artefact.meta), allow_nan=False)),
            "model_digest": artefact.model_digest,
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must be JSON-able: {error}") from None
    arrays = {name: np.asarray(array, order="C") for name, array in artefact.arrays.items()}
    facts["digest"] = _digest(facts, arrays)
    # One entry of metadata: the library keeps several in no fixed order.
    content = safetensors.numpy.save(arrays, metadata={"artefact": json.dumps(facts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _files.in_place(path) as file:
        file.write(content)


@_files.one_line()
def load(path: str | os.PathLike[str], *, kind: str | None = None, model: Model | None = None) -> Artefact:
    """Read an artefact.

    Args:
      path: a file that `save` wrote.
      kind: the kind that is expected, or None for any.
      model: the model that it must have been made from, or None for any.

    Raises:
      OSError: the file is missing or cannot be read.
      ValueError: not an artefact, a damaged or changed one, one of another kind, version or model.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> made = Artefact(kind="codes", version=1, arrays={"x": np.zeros((2, 3))}, meta={"seed": 0}, model_digest="0")
    >>> save(f"{folder}/codes.safetensors", made)
    >>> load(f"{folder}/codes.safetensors", kind="codes").arrays["x"].shape
    (2, 3)
    """
    path = Path(path)
    facts, arrays = _read(path)
    if kind is not None and facts["kind"] != kind:
        raise ValueError(f"{path.name} is an artefact of kind {facts['kind']!r}, not {kind!r}")
    if facts["kind"] in KINDS and facts["version"] != VERSION:  # kinds of others have versions of their own
        raise ValueError(f"{path.name} has artefact version {facts['version']}; this library reads version {VERSION}")
    artefact = Artefact(
        kind=facts["kind"],
        version=facts["version"],
        arrays=arrays,
        meta=facts["meta"],
        model_digest=facts["model_digest"],
    )
    if model is not None:
        check_model(artefact, model, name=path.name)
    return artefact


def is_one(path: str | os.PathLike[str]) -> bool:
    """Return whether a file of safetensors says that it is an artefact, or cannot say what it is."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            return "artefact" in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):  # `load` tells of it
        return True


def check_model(artefact: Artefact, model: Model, *, name: str = "") -> None:
    """Raise a ValueError unless an artefact was made from this model."""
    digest = _tree.model_digest(model)
    if artefact.model_digest != digest:
        raise ValueError(
            f"{name or 'the artefact'} ({artefact.kind}) was made from another model: its digest is "
            f"{artefact.model_digest[:16]}..., this model's {digest[:16]}...; make it from this one"
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    import safetensors

    _files.regular(path)  # a missing or unreadable path fails here, with the system's own reason
    try:
        with safetensors.safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {})["artefact"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']!r}")
        for name, expected in (("kind", str), ("version", int), ("meta", dict), ("model_digest", str)):
            if not isinstance(facts[name], expected):
                raise ValueError(f"its {name} is a {type(facts[name]).__name__}")
        found = facts.pop("digest")
        changed = found != _digest(facts, arrays)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = "no entry " + str(error) if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise ValueError(f"{path.name} is not an artefact of jaxunlearn, or is damaged: {reason}") from None
    if changed:
        raise ValueError(f"{path.name} is damaged or was changed: its content does not have its digest")
    return facts, arrays


def _digest(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    text = json.dumps(dict(facts), sort_keys=True) + _tree.digest(dict(arrays))
    return hashlib.sha256(text.encode()).hexdigest()

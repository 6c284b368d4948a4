"""Names of a run's files, and what ``results.json`` must hold: checked before it is written and when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxunlearn._types import GOALS

RESULTS, CHECKPOINT = "results.json", "checkpoint"
#: In the place of the checkpoint, of a network without a recipe: nothing could rebuild it.
WEIGHTS = "weights.npz"
SCHEMA_VERSION = 1
SETS = ("forget", "retain", "test")
STOP_REASONS = ("forgotten", "max_steps", "diverged", "completed", "interrupted")


def validate(results: Any) -> None:
    """Raise ValueError naming the first field that is missing or of the wrong kind in ``results.json``."""
    number = (int, float)
    kinds: dict[str, Any] = {
        "schema_version": int, "method": str, "goal": str, "seed": int, "before": dict, "after": dict,
        "instances": list, "stop_reason": str, "steps": int, "seconds": dict, "config": dict, "versions": dict,
        "extras": dict,
    }  # fmt: skip
    if not isinstance(results, dict) or results.get("tool") != "jaxunlearn":
        raise ValueError("results.json is not that of a jaxunlearn run")
    _require(results, kinds, "")
    if results["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"results.json has schema_version {results['schema_version']}; this version reads 1")
    if results["goal"] not in GOALS:
        raise ValueError(f"results.json: goal must be one of {', '.join(GOALS)}; got {results['goal']!r}")
    if results["stop_reason"] not in STOP_REASONS:
        raise ValueError(f"results.json: stop_reason must be one of {STOP_REASONS}; got {results['stop_reason']!r}")
    for when in ("before", "after"):
        for name in SETS:
            value = results[when].get(name, "absent")
            if value is not None and not (isinstance(value, number) and 0 <= value <= 1):
                raise ValueError(f"results.json: {when}.{name} must be a fraction or null; got {value!r}")
    for name, value in results["seconds"].items():
        if not isinstance(value, number):
            raise ValueError(f"results.json: seconds.{name} must be a number; got {value!r}")
    for i, row in enumerate(results["instances"]):
        if not isinstance(row, dict):
            raise ValueError(f"results.json: instances[{i}] must be an object; got {row!r}")
        _require(row, {"id": (str, int), "label": int, "forgotten_at": int}, f"instances[{i}].")
        _require(row, dict.fromkeys(("before", "after"), (int, type(None))), f"instances[{i}].")

    _optional(results)


#: Fields that not every run has -> their kind; readers may count on it where they are there.
_OPTIONAL: dict[str, Any] = {
    "data": str,
    "command": str,
    "origin": dict,
    "earlier": list,
    "digests": dict,
    "depth": dict,
}


def _optional(results: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that may be absent or null, and is of the wrong kind."""
    present = {name: kind for name, kind in _OPTIONAL.items() if results.get(name) is not None}
    _require(results, present, "")
    if results.get("origin"):
        _require(results["origin"], {"weights": str, "digest": str}, "origin.")
    for name, value in (results.get("digests") or {}).items():
        if not isinstance(value, str):
            raise ValueError(f"results.json: digests.{name} must be text; got {value!r}")
    if results["extras"].get("reading") is not None:
        _require(results["extras"], {"reading": dict}, "extras.")
    for i, row in enumerate(results.get("earlier") or ()):
        if not isinstance(row, dict):
            raise ValueError(f"results.json: earlier[{i}] must be an object; got {row!r}")
        _require(row, {"id": (str, int), "label": int, "run": str, "goal": str}, f"earlier[{i}].")
    for row in (*results["instances"], *(results.get("earlier") or ())):
        if not isinstance(row.get("target"), int | None):
            raise ValueError(f"results.json: a target must be a label or null; got {row['target']!r}")


def _require(mapping: Mapping[str, Any], kinds: Mapping[str, Any], prefix: str) -> None:
    for name, kind in kinds.items():
        if name not in mapping:
            raise ValueError(f"results.json lacks the field {prefix}{name}")
        if not isinstance(mapping[name], kind) or isinstance(mapping[name], bool):
            raise ValueError(f"results.json: {prefix}{name} is of the wrong kind; got {mapping[name]!r}")

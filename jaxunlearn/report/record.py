"""What a run was, as plain data: the record a command fills in and the JSON it becomes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import losses
from jaxunlearn._types import Batch, Result
from jaxunlearn.audits.accuracy import behaviour
from jaxunlearn.report import figures, folder, frame
from jaxunlearn.report.schema import SCHEMA_VERSION, SETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything a run folder shows; nothing in it is recomputed except what follows from it.

    Attributes:
      method, goal, seed: what was asked for.
      config: the hyper-parameters by name, JSON-able (``dataclasses.asdict`` of the Config).
      forget: the forget set D_f, k instances inside the model's box.
      ids: (k,) the names of the instances in their data set.
      result: what the run returned; its model goes into the checkpoint.
      before, after: accuracies on "forget", "retain" and "test" as fractions,
        None or absent where not measured.
      logits_before, logits_after: (k, C) eval-mode logits of the forget set.
      sizes: number of instances behind the accuracies, by set.
      class_names: C names, or empty where labels are only numbers.
      box: range of the inputs, for drawing them.
      arch, data: name of the network and of the data source, for the reader.
      command: the command line that made the run, or None.
      digests: SHA-256 of what went in and came out, by name: "weights before", "weights after", and those of
        the data (``job/digests.py``).
      seconds: time of further phases ("load", "evaluate", ...) beside the result's own, in the last process;
        "earlier processes": of the unlearning in those before, where a run was resumed.
      curve: accuracy on a sample of a set while the run went on, ``{"test": [(step, fraction), ...]}``.
      memory: peak bytes up to the end of the unlearning: "process" and, of an accelerator, "device".
      depth: what `jaxunlearn.audits.depth` measured, or None.
      weights: how much of the network changed, `jaxunlearn.audits.change`, or None.
      saw: how many images the method saw, by kind: "forget", "retain", "public", "inversion", "earlier"; of how many
        classes "codes" and "anchors" were, of how many training images "moments".
      origin: where the network before the first of several requests lies, ``weights`` and ``digest``.
      earlier: instances of earlier requests measured again, one mapping an
        instance: ``run``, ``id``, ``label``, ``after`` (label now given),
        ``forgotten`` (bool, by the goal of its own request).
      images: whether reports show the instances themselves, and images made from them.
      extras: further JSON-able facts.
    """

    method: str
    goal: str
    seed: int
    config: Mapping[str, Any]
    forget: Batch
    ids: Sequence[Any]
    result: Result
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    logits_before: Any
    logits_after: Any
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] = ()
    box: tuple[float, float] = (0.0, 1.0)
    arch: str = ""
    data: str = ""
    command: str | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curve: Mapping[str, Sequence[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
    depth: Mapping[str, Any] | None = None
    weights: Mapping[str, Any] | None = None
    saw: Mapping[str, int] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, str] | None = None
    earlier: Sequence[Mapping[str, Any]] = ()
    images: bool = True
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        k, classes = len(self.ids), np.shape(self.logits_before)[-1]
        for name in ("logits_before", "logits_after"):
            if np.shape(getattr(self, name)) != (k, classes):
                raise ValueError(f"{name} must have shape ({k}, {classes}); got {np.shape(getattr(self, name))}")
        if np.shape(self.forget.x)[0] != k:
            raise ValueError(f"forget must hold one instance an id: {np.shape(self.forget.x)[0]} for {k} ids")
        if self.class_names and len(self.class_names) != classes:
            raise ValueError(f"class_names must have {classes} names; got {len(self.class_names)}")
        for name in ("before", "after"):
            unknown = set(getattr(self, name)) - set(SETS)
            if unknown:
                raise ValueError(f"{name} must have accuracies of {', '.join(SETS)}; got {sorted(unknown)[0]!r}")

    @functools.cached_property
    def forgotten(self) -> np.ndarray:
        """(k,) bool: the goal holds by the result *and* by the logits recorded here."""
        now = losses.forgotten(jnp.asarray(self.logits_after), self.forget, self.goal)
        return np.asarray(self.result.forgotten, bool) & np.asarray(now)

    def dataframe(self) -> Any:
        """Return the instances as a `pandas.DataFrame`, one row each; see ``jaxunlearn.report.frame``.

        Raises:
          ModuleNotFoundError: pandas is not installed.
        """
        return frame.frame(self)

    def figures(self) -> dict[str, Any]:
        """Return the pictures of the report as `matplotlib.figure.Figure` objects by name, without a display.

        "curves" and "transitions" are always there, "forgotten", "adversarial" and "proxies" where there is something
        to show and ``images`` is on.
        """
        return {name: figure for name, (figure, _) in figures.made(self).items()}

    def save(self, out_dir: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the run folder as the command line does (`jaxunlearn.report.write_run`) and return its path.

        A network without a recipe, such as one of a class in a notebook, is kept as ``weights.npz`` in the place of a
        checkpoint.

        Raises:
          FileExistsError: something is there already, or an earlier run and ``overwrite`` is off.
        """
        return folder.write_run(out_dir, self, overwrite=overwrite)

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The record as strict JSON values, the content of ``results.json``."""
        return _jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "tool": "jaxunlearn",
                "method": self.method,
                "goal": self.goal,
                "seed": int(self.seed),
                "arch": self.arch,
                "data": self.data,
                "before": {name: self.before.get(name) for name in SETS},
                "after": {name: self.after.get(name) for name in SETS},
                "sizes": {"forget": len(self.ids), **self.sizes},
                "goal_met": bool(self.forgotten.all()),
                "forgotten": int(self.forgotten.sum()),
                "instances": self._instances(),
                "stop_reason": self.result.stop_reason,
                "steps": int(self.result.steps),
                "seconds": {**self.seconds, **self.result.seconds},
                "config": self.config,
                "command": self.command,
                "versions": versions(),
                "digests": self.digests,
                "memory": self.memory,
                "depth": self.depth,
                "weights": self.weights,
                "saw": self.saw,
                "origin": self.origin,
                "earlier": list(self.earlier),
                "curve": {name: [list(point) for point in points] for name, points in self.curve.items()},
                "history": self.result.history,
                "extras": {**_plain_extras(self.result.extras), **self.extras},
            }
        )

    def _instances(self) -> list[dict[str, Any]]:
        label, target = np.asarray(self.forget.y), np.asarray(self.forget.target)
        rows = behaviour(self.logits_before, self.logits_after, label)
        for i, row in enumerate(rows):
            row["id"] = self.ids[i]
            row["target"] = int(target[i]) if self.goal == "relabel" else None
            row["forgotten"] = bool(self.forgotten[i])
            row["forgotten_at"] = int(self.result.forgotten_at[i]) if self.forgotten[i] else -1
        return [{"id": row.pop("id"), **row} for row in rows]


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python, this library and those it computes with, and the device."""
    found = {"python": platform.python_version()}
    for name in ("jaxunlearn", "jax", "jaxlib", "numpy", "optax", "flax", "orbax-checkpoint"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"platform": platform.platform(), "device": jax.devices()[0].device_kind}


def _plain_extras(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a method offers as numbers; of images say only how many there are."""
    plain: dict[str, Any] = {}
    for name, value in extras.items():
        if name == "artefacts":
            plain[name] = [artefact.kind for artefact in value]
        elif isinstance(value, Batch):
            plain[name] = {"instances": int(np.sum(np.asarray(value.weight) > 0))}
        elif np.ndim(value) == 4:
            plain[name] = {"images": len(value)}
        elif all(np.size(leaf) <= 1024 for leaf in jax.tree.leaves(value)):
            plain[name] = value
    return plain


def _jsonable(value: Any) -> Any:
    """Return strict JSON: arrays become lists, NaN and infinities null, keys strings."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _jsonable(np.asarray(value).tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)

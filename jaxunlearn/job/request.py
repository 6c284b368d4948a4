"""What is to be forgotten, of which data, by which network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn._types import Artefact, Batch, Goal, MethodSpec, Model, Problem
from jaxunlearn.data import Source
from jaxunlearn.data.forget import ranked

#: The user's unlabelled images that are used, at most.
MOST_PUBLIC = 4000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """An instance that an earlier run was asked to forget."""

    run: str
    id: str
    row: int
    label: int
    goal: Goal
    target: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be forgotten, of which data, by which network.

    Attributes:
      model: the classifier before.
      source: the data set.
      rows: (k,) rows of the forget set; target: (k,) labels to give instead, or None.
      goal: what forgetting means; seed: of everything random.
      earlier: instances that earlier runs forgot.
      original: the network before the first of them, where it is still there.
      origin: where that network, or this one if it is the first, lies and its digest.
      public: the user's unlabelled images; inversion: images made from the network.
      artefacts: what training time or an earlier run left behind, and anchors of the user's, by kind.
      limits: how many instances of "retain" and of "test" are measured, a fixed random choice; all where absent.
    """

    model: Model
    source: Source
    rows: np.ndarray
    target: np.ndarray | None = None
    goal: Goal = "misclassify"
    seed: int = 0
    earlier: Sequence[Earlier] = ()
    original: Model | None = None
    origin: Mapping[str, str] | None = None
    public: np.ndarray | None = None
    inversion: Artefact | None = None
    artefacts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> Model:
        """The network whose answers are held: the first of a chain of requests, if it is there, not an edited one."""
        return self.original or self.model

    def sets(self) -> dict[str, np.ndarray]:
        """Return the rows to measure by set: "forget", "retain" (by default all else in training), "test", if any."""
        source = self.source
        gone = np.concatenate([self.rows, [item.row for item in self.earlier]]).astype(np.intp)
        sets = {
            "retain": source.retained(gone),
            "test": source.splits.get("test", np.empty(0, int)),
        }
        for name, limit in self.limits.items():
            sets[name] = np.sort(ranked("measure", source, sets[name])[:limit])
        return {"forget": self.rows, **{name: rows for name, rows in sets.items() if len(rows)}}

    def forget(self) -> Batch:
        """Return the forget set as a batch."""
        return Batch.of(self.source.images(self.rows), self.source.labels[self.rows], self.target)

    def problem(self, spec: MethodSpec) -> Problem:
        """Return what the method gets to see: retain data only if it needs them, what else there is if it uses it."""
        retain = None
        if "retain" in spec.needs:
            rows = self.source.retained([*self.rows, *(item.row for item in self.earlier)])
            retain = Batch.of(self.source.images(rows), self.source.labels[rows]) if len(rows) else None
        wanted = (*spec.needs, *spec.uses)
        held = batch_of(self.earlier, self.source) if self.earlier else None
        offered = {**self.artefacts, "held": held, "original": self.original, "proxies": self.inversion}
        return Problem(
            model=self.model,
            forget=self.forget(),
            retain=retain,
            public=self.public if "public" in wanted else None,  # type: ignore[arg-type]
            artefacts={name: value for name, value in offered.items() if value is not None and name in wanted},
            goal=self.goal,
        )


def public_rows(count: int, seed: int) -> np.ndarray:
    """Return which of so many unlabelled images are used: all, or `MOST_PUBLIC` drawn by the seed; ascending."""
    if count <= MOST_PUBLIC:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:MOST_PUBLIC])


def batch_of(items: Sequence[Earlier], source: Source) -> Batch:
    """Return the instances of earlier requests as a batch."""
    images = source.images([item.row for item in items])
    return Batch.of(images, [item.label for item in items], [item.target for item in items])

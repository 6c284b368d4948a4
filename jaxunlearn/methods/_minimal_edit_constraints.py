"""Margin constraints of the minimal edit: which logits must fall below which, for each instance."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import curvature
from jaxunlearn._types import Batch

#: Relabel: how many of the strongest other classes must stay below the target, per instance and step.
COMPETITORS = 9


class Instances(NamedTuple):
    """Instances of one request and of earlier ones, on the host.

    Attributes:
      x: (k, *input_shape).
      y: label to lose, (k,).
      target: label to get, or -1: any other, (k,).
      barred: classes that the instance may not be given, k sets.
      position: place in the forget set, or -1 for an instance of an earlier request.
      margin: how far past the boundary it must lie, (k,).
    """

    x: np.ndarray
    y: np.ndarray
    target: np.ndarray
    barred: tuple[frozenset[int], ...]
    position: np.ndarray
    margin: np.ndarray


class Rows(NamedTuple):
    """Constraints ``margin + change <= -required margin``, one a row.

    Attributes:
      x: (m, *input_shape); direction: (m, C), the combination of logits that must fall.
      margin: its value, (m,); required: by how much it must fall in this step, (m,).
      owner: instance of each row, (m,).
    """

    x: np.ndarray
    direction: np.ndarray
    margin: np.ndarray
    required: np.ndarray
    owner: np.ndarray

    @property
    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x, self.direction


def real(batch: Batch) -> Batch:
    """Return a batch without its padding."""
    keep = np.asarray(batch.weight) > 0
    return batch if keep.all() else jax.tree.map(lambda leaf: leaf[keep], batch)


def check(forget: Batch, goal: str) -> None:
    """Raise ValueError naming two identical images that are to get different labels."""
    if goal != "relabel":
        return
    first: dict[bytes, int] = {}
    x, target = np.asarray(forget.x), np.asarray(forget.target)
    for i in range(len(x)):
        j = first.setdefault(x[i].tobytes(), i)
        if target[j] != target[i]:
            raise curvature.InfeasibleError(
                np.array([j, i]),
                f"instances {j} and {i} of the forget set are the same image,"
                f" but one is to become {target[j]} and the other {target[i]}",
            )


def join(
    forget: Batch, held: Batch | None, copies: tuple[Any, Any] | None, goal: str, *, margin: float, depth_margin: float
) -> Instances:
    """Put the instances of a request, those forgotten earlier and copies of the former side by side.

    A held instance with a target keeps that target, one without any other
    label. Equal images share their lost labels: none may get another's.
    """
    x, y, index = np.asarray(forget.x), np.asarray(forget.y), np.asarray(forget.index)
    target = np.asarray(forget.target) if goal == "relabel" else np.full(len(x), -1)
    parts: list[tuple[Any, ...]] = [(x, y, target, index, np.full(len(x), margin))]
    if held is not None:
        old = len(held.y)
        parts.append((held.x, held.y, held.target, np.full(old, -1), np.full(old, margin)))
    if copies is not None:
        used = np.flatnonzero(np.asarray(copies[1]) >= 0)
        own = np.asarray(copies[1])[used]
        parts.append((np.asarray(copies[0])[used], y[own], target[own], index[own], np.full(len(own), depth_margin)))
    x, y, target, index, margins = (
        np.concatenate([np.asarray(a) for a in column]) for column in zip(*parts, strict=True)
    )
    lost: dict[bytes, set[int]] = {}
    names = [image.tobytes() for image in x]
    for name, label in zip(names, y, strict=True):
        lost.setdefault(name, set()).add(int(label))
    return Instances(x, y, target, tuple(frozenset(lost[name]) for name in names), index, margins)


def largest_margin(logits: np.ndarray, y: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return by how much each instance is not yet where it should be, (k,): negative once it is.

    Where there is a target, the strongest other logit less the target's; else
    the label's less the strongest other.
    """
    rows = np.arange(len(logits))
    kept = np.where(target >= 0, target, y)
    own, others = logits[rows, kept], logits.copy()
    others[rows, kept] = -np.inf
    lead: np.ndarray = own - others.max(axis=1)
    return np.where(target >= 0, -lead, lead)


def linearise(logits: np.ndarray, instances: Instances, *, towards: str, share: float) -> Rows:
    """Return the constraints at the current logits, (k, C).

    Misclassify: the label against the strongest class that is not barred
    (`towards` "runner-up"), or against the softmax-weighted mean of the others
    ("any"). Relabel: each of the strongest other classes against the target. A
    constraint that is not met yet asks for ``share`` of the way; one that is
    may give back what it has beyond the margin.
    """
    classes = logits.shape[1]
    eye = np.eye(classes, dtype=np.float32)
    owner: list[int] = []
    directions: list[np.ndarray] = []
    margins: list[float] = []

    def add(i: int, direction: np.ndarray, value: float) -> None:
        owner.append(i)
        directions.append(direction)
        margins.append(value)

    for i, z in enumerate(logits.astype(np.float64)):
        target, label = int(instances.target[i]), int(instances.y[i])
        if target >= 0:
            rivals = [c for c in np.argsort(-z) if c != target][:COMPETITORS]
            for c in rivals:
                add(i, eye[c] - eye[target], z[c] - z[target])
            continue
        others = np.array([c for c in range(classes) if c not in instances.barred[i]], dtype=int)
        if not len(others):
            raise curvature.InfeasibleError(
                np.array([i]),
                f"instance {instances.position[i]} is there once with every label, so none is left to give it",
            )
        best = others[z[others].argmax()]
        direction = eye[label] - eye[best]
        if towards == "any":
            weight = np.exp(z[others] - z[best])
            direction = eye[label] - (weight / weight.sum()).astype(np.float32) @ eye[others]
        add(i, direction, z[label] - z[best])

    value, which = np.array(margins), np.array(owner)
    missing = value + instances.margin[which]
    required = np.where(missing > 0, share * missing, missing)
    return Rows(instances.x[which], np.stack(directions), value, required, which)


def contradiction(
    error: curvature.InfeasibleError, rows: Rows, instances: Instances, proxies: int
) -> curvature.InfeasibleError:
    """Return the solver's error in terms of the forget set."""
    index = instances.position[np.unique(rows.owner[error.rows])]
    mine = index[index >= 0]
    some = ", ".join(map(str, mine[:8])) + (", ..." if len(mine) > 8 else "")
    earlier = f" and {np.sum(index < 0)} of earlier requests" if (index < 0).any() else ""
    return curvature.InfeasibleError(
        mine,
        f"no small change of these weights can meet the constraints of instances {some}{earlier} together:"
        f" {len(rows.margin)} constraints, {proxies} proxies. Edit more layers, forget fewer at a time,"
        " or look whether they are near-copies with different labels",
    )

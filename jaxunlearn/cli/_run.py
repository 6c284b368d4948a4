"""One request from start to end: measure, unlearn, measure again, record. Used by every command that unlearns."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _config, _journal, _progress, _tree, curvature, inference, loop, losses, report
from jaxunlearn._types import Artefact, Batch, Goal, MethodSpec, Model, Problem
from jaxunlearn.audits.accuracy import accuracy
from jaxunlearn.audits.change import change
from jaxunlearn.audits.depth import depth
from jaxunlearn.cli import _device, _errors
from jaxunlearn.data import Source
from jaxunlearn.data.forget import ranked
from jaxunlearn.loop import Event

#: Test images that are watched while a method works; never more than one batch of evaluation.
WATCHED = 250


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
      goal, seed: as on the command line.
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
            retain = Batch.of(self.source.images(rows), self.source.labels[rows])
        wanted = (*spec.needs, *spec.uses)
        held = _batch(self.earlier, self.source) if self.earlier else None
        offered = {**self.artefacts, "held": held, "original": self.original, "proxies": self.inversion}
        return Problem(
            model=self.model,
            forget=self.forget(),
            retain=retain,
            public=self.public if "public" in wanted else None,  # type: ignore[arg-type]
            artefacts={name: value for name, value in offered.items() if value is not None and name in wanted},
            goal=self.goal,
        )


class Measured:
    """Accuracies of a model on the sets of a request, and its logits on the forget set.

    Attributes:
      accuracy: fraction by set; logits: (k, C); sizes: instances by set; seconds: it took.
    """

    def __init__(self, model: Model, request: Request, *, when: str, only: Sequence[str] | None = None) -> None:
        began = time.perf_counter()
        source = request.source
        self.accuracy: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        self.logits = np.zeros((0, model.spec.num_classes), np.float32)
        for name, rows in request.sets().items():
            if only is not None and name not in only:
                continue
            logits = inference.logits(model, source.view(rows), label=f"measuring {when}: {name} set")
            self.accuracy[name], self.sizes[name] = accuracy(logits, source.labels[rows]), len(rows)
            if name == "forget":
                self.logits = logits
        self.seconds = time.perf_counter() - began


def run(
    request: Request,
    problem: Problem,
    spec: MethodSpec,
    config: Any,
    before: Measured,
    *,
    deep: bool = False,
    images: bool = True,
    command: str | None = None,
    seconds: Mapping[str, float] | None = None,
    extras: Mapping[str, Any] | None = None,
) -> report.RunRecord:
    """Unlearn, measure again, and return the record; after Ctrl-C only the forget set is measured.

    Args:
      request: what is asked; problem: the part of it that the method sees.
      spec, config: the method and its hyper-parameters.
      before: the model measured before.
      deep: whether to measure how deep the forgetting goes, too (`jaxunlearn.audits.depth`).
      images: whether reports may show the instances.
      command: the command line.
      seconds: phases that were timed before this call.
      extras: further facts for the record.

    Raises:
      UserError: no change of the weights can meet what is asked for.
    """
    model, source = request.model, request.source
    watch = _Watch(request, spec, config)
    _journal.attach(watch.get, watch.put)
    try:
        result = loop.unlearn(
            problem,
            method=spec,
            config=config,
            key=jax.random.key(request.seed),
            callback=watch if watch.rows.size else None,
        )
    except curvature.InfeasibleError as error:  # what is asked for contradicts itself
        names = ", ".join(source.ids[request.rows[[i for i in error.rows[:8] if 0 <= i < len(request.rows)]]])
        raise _errors.UserError(str(error) + (f"; by id: {names}" if names else "")) from error
    memory = _device.peak_memory()
    # Watching is no part of the method: its time stands apart.
    unlearn = max(result.seconds.get("unlearn", 0.0) - watch.seconds, 0.0)
    result = dataclasses.replace(result, seconds={**result.seconds, "unlearn": unlearn})
    only = ("forget",) if result.stop_reason == "interrupted" else None
    after = Measured(result.model, request, when="after", only=only)
    spent = {
        **(seconds or {}),
        "measure before": before.seconds,
        "watch": watch.seconds,
        "measure after": after.seconds,
    }
    found = None
    if deep and result.stop_reason != "interrupted":
        with timed(spent, "depth"):
            key = jax.random.fold_in(jax.random.key(request.seed), 1)
            found = depth(result.model, problem.forget.x, problem.forget.y, key=key, original=model)
    recipe = model.spec.recipe
    return report.RunRecord(
        method=spec.name,
        goal=request.goal,
        seed=request.seed,
        config=dataclasses.asdict(config),
        forget=problem.forget,
        ids=source.ids[request.rows].tolist(),
        result=result,
        before=before.accuracy,
        after=after.accuracy,
        logits_before=before.logits,
        logits_after=after.logits,
        sizes=before.sizes,
        class_names=_class_names(model, source),
        box=model.spec.box,
        arch=recipe.arch if recipe is not None else "",
        data=source.name,
        command=command,
        digests={"weights before": _tree.model_digest(model), "weights after": _tree.model_digest(result.model)},
        seconds=spent,
        memory=memory,
        depth=found,
        weights=change(result.model, model),
        saw=seen(problem),
        origin=request.origin,
        curve={"test": watch.points} if watch.points else {},
        earlier=measure_earlier(result.model, request),
        images=images,
        extras=extras or {},
    )


def seen(problem: Problem) -> dict[str, int]:
    """Return how many images a method is shown, by kind."""
    kept, held = problem.artefacts.get("proxies"), problem.artefacts.get("held")
    counts = {
        "forget": len(problem.forget.y),
        "retain": 0 if problem.retain is None else len(problem.retain.y),
        "public": 0 if problem.public is None else len(problem.public),
        "inversion": 0 if kept is None else len(kept.arrays["x"]),
        "earlier": 0 if held is None else len(held.y),
    }
    return {kind: count for kind, count in counts.items() if count}


def measure_earlier(model: Model, request: Request) -> list[dict[str, Any]]:
    """Return what a model now says of the instances that earlier runs forgot."""
    items = request.earlier
    if not items:
        return []
    view = request.source.view([item.row for item in items])
    logits = inference.logits(model, view, label="measuring earlier requests")
    batch = _batch(items, request.source)
    met = {goal: np.asarray(losses.forgotten(jnp.asarray(logits), batch, goal)) for goal in {i.goal for i in items}}
    finite = np.isfinite(logits).all(axis=1)
    return [
        {
            **{name: value for name, value in dataclasses.asdict(item).items() if name != "row"},
            "after": int(logits[i].argmax()) if finite[i] else None,
            "forgotten": bool(met[item.goal][i]),
        }
        for i, item in enumerate(items)
    ]


def earlier_of(previous: report.Run, source: Source, rows: np.ndarray) -> list[Earlier]:
    """Return the instances that a run and the runs before it forgot, without those asked for again now.

    Raises:
      ValueError: an instance is not in the training split of this data set, or has another label there.
    """
    results = previous.results
    own = {"run": str(previous.path), "goal": results["goal"]}
    found = [*results.get("earlier", ()), *({**own, **instance} for instance in results["instances"])]
    items: dict[int, Earlier] = {}
    for entry in found:
        row = source.row_of(str(entry["id"]))
        if row is None or source.labels[row] != entry["label"] or row not in source.splits["train"]:
            raise ValueError(
                f"{previous.path} forgot the instance {entry['id']} with label {entry['label']} of {results['data']}, "
                f"which {source.name} does not have: go on with the same data"
            )
        target = -1 if entry.get("target") is None else int(entry["target"])
        facts = {name: entry[name] for name in ("run", "goal", "label")}
        items[row] = Earlier(row=row, id=str(entry["id"]), target=target, **facts)
    asked = set(rows.tolist())
    return [item for row, item in items.items() if row not in asked]


def check_out(out: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise a `UserError` unless a run can be written to a folder; found before any work, by trying."""
    with _errors.user_input():
        parent = report.check_out(out, overwrite=overwrite).parent
        while not parent.exists():
            parent = parent.parent
        try:
            with tempfile.NamedTemporaryFile(dir=parent, prefix=".jaxunlearn-") as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(parent)) from error


def write(out: str | os.PathLike[str], record: report.RunRecord, *, overwrite: bool) -> Path:
    """Write a run folder and return its path; a disk that is full by now is a `UserError`, and leaves nothing."""
    try:
        return report.write_run(out, record, overwrite=overwrite)
    except OSError as error:
        raise _errors.UserError(f"cannot write {out}: {error.strerror or error}") from error


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's wall-clock time to ``seconds[name]``."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


class _Watch:
    """Accuracy on a few test images while a method works, ever more rarely; only looked at, never used."""

    def __init__(self, request: Request, spec: MethodSpec, config: Any) -> None:
        test = request.source.splits.get("test", np.empty(0, int))
        self.rows = np.sort(ranked("watch", request.source, test)[:WATCHED])
        self._request, self._unlearner = request, spec.make(_config.static(config))
        self._images = request.source.images(self.rows)
        self._next = 0
        self.points: list[tuple[int, float]] = []
        self.seconds = 0.0
        if self.rows.size and self._unlearner.phases:
            self._look(request.model, 0)

    def __call__(self, event: Event) -> None:
        if event.steps >= self._next or bool(event.state.done):
            self._look(self._unlearner.finish(event.state.inner), event.steps)

    def get(self) -> dict[str, Any]:
        """Return what has been seen so far, plain JSON, to be `put` back when the run is resumed."""
        return {"points": self.points, "next": self._next, "seconds": self.seconds}

    def put(self, seen: Mapping[str, Any]) -> None:
        """Take up what was seen before the run was stopped."""
        self.points = [(int(step), float(share)) for step, share in seen["points"]]
        self._next, self.seconds = int(seen["next"]), float(seen["seconds"])

    def _look(self, model: Model, step: int) -> None:
        began = time.perf_counter()
        with _progress.listening(None):
            logits = inference.logits(model, self._images)
        self.points.append((step, accuracy(logits, self._request.source.labels[self.rows])))
        self._next = step + max(1, math.ceil(step * 0.2))
        self.seconds += time.perf_counter() - began


def _batch(items: Sequence[Earlier], source: Source) -> Batch:
    images = source.images([item.row for item in items])
    return Batch.of(images, [item.label for item in items], [item.target for item in items])


def _class_names(model: Model, source: Source) -> Sequence[str]:
    names = source.class_names or ()
    return names if len(names) == model.spec.num_classes else ()

"""A request from start to end: measure, unlearn, measure again, record."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _config, _journal, _progress, _tree, curvature, inference, loop, losses, report
from jaxunlearn._types import MethodSpec, Model, Problem
from jaxunlearn.audits.accuracy import accuracy
from jaxunlearn.audits.change import change
from jaxunlearn.audits.depth import depth
from jaxunlearn.data import Source
from jaxunlearn.data.forget import ranked
from jaxunlearn.job import digests
from jaxunlearn.job.request import Request, batch_of
from jaxunlearn.loop import Event

#: Test images that are watched while a method works; never more than one batch of evaluation.
WATCHED = 250
#: ``callback(event, points)``: what the loop tells, and the curve of a sample of the test set so far.
Callback: TypeAlias = Callable[[Event, Sequence[tuple[int, float]]], None]


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
            # Of other sets not even their logits are held: of a million images and a thousand classes, 4 GB.
            measure = inference.logits if name == "forget" else inference.predictions
            found = measure(model, source.view(rows), label=f"measuring {when}: {name} set")
            self.accuracy[name], self.sizes[name] = accuracy(found, source.labels[rows]), len(rows)
            if name == "forget":
                self.logits = found
        self.seconds = time.perf_counter() - began


def perform(
    request: Request,
    problem: Problem,
    spec: MethodSpec,
    config: Any,
    before: Measured,
    *,
    deep: bool = False,
    images: bool = True,
    command: str | None = None,
    callback: Callback | None = None,
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
      callback: told of every step, or segment of steps, with the points ``(step, fraction)`` of the curve so far.
      seconds: phases that were timed before this call.
      extras: further facts for the record.

    Raises:
      InfeasibleError: no change of the weights can meet what is asked for; it names the instances.
    """
    model, source = request.model, request.source
    of_data = digests.of_data(request, problem.forget)  # now: files may be others when all is done
    watch = Watch(request, spec, config)
    _journal.attach(watch.get, watch.put)
    try:
        result = loop.run(
            problem,
            method=spec,
            config=config,
            key=jax.random.key(request.seed),
            callback=_both(watch, callback),
        )
    except curvature.InfeasibleError as error:  # what is asked for contradicts itself
        names = ", ".join(source.ids[request.rows[[i for i in error.rows[:8] if 0 <= i < len(request.rows)]]])
        message = str(error) + (f"; by id: {names}" if names else "")
        raise curvature.InfeasibleError(error.rows, message) from error
    memory = peak_memory()
    # Watching is no part of the method: its time stands apart.
    unlearn = max(result.seconds.get("unlearn", 0.0) - watch.meanwhile, 0.0)
    result = dataclasses.replace(result, seconds={**result.seconds, "unlearn": unlearn})
    watch.stop()
    only = ("forget",) if result.stop_reason == "interrupted" else None
    after = Measured(result.model, request, when="after", only=only)
    spent = {
        **(seconds or {}),
        "measure before": before.seconds,
        "watch": watch.seconds,
        "measure after": after.seconds,
    }
    if watch.earlier:
        spent["earlier processes"] = watch.earlier
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
        digests={
            "weights before": _tree.model_digest(model),
            "weights after": _tree.model_digest(result.model),
            **of_data,
        },
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
    """Return how many images a method is shown by kind, and what else: of how many images or classes it is."""
    kept, held = problem.artefacts.get("proxies"), problem.artefacts.get("held")
    codes, moments = problem.artefacts.get("codes"), problem.artefacts.get("moments")
    counts = {
        "forget": len(problem.forget.y),
        "retain": 0 if problem.retain is None else len(problem.retain.y),
        "public": 0 if problem.public is None else len(problem.public),
        "inversion": 0 if kept is None else len(kept.arrays["x"]),
        "earlier": 0 if held is None else len(held.y),
        "codes": 0 if codes is None else len(codes.arrays["classes"]),
        "moments": 0 if moments is None else len(moments.arrays["instances"]),
        "anchors": len(problem.artefacts.get("anchors", ())),
    }
    return {kind: count for kind, count in counts.items() if count}


def measure_earlier(model: Model, request: Request) -> list[dict[str, Any]]:
    """Return what a model now says of the instances that earlier runs forgot."""
    items = request.earlier
    if not items:
        return []
    view = request.source.view([item.row for item in items])
    logits = inference.logits(model, view, label="measuring earlier requests")
    batch = batch_of(items, request.source)
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


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's wall-clock time to ``seconds[name]``."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


class Watch:
    """Accuracy on a few test images while a method works, ever more rarely; only looked at, never used.

    Attributes:
      points: the curve so far, ``(step, fraction)``; seconds: the looking took, in this process.
      earlier: seconds of unlearning, without looking, of the processes before whose state this one goes on from.
    """

    def __init__(self, request: Request, spec: MethodSpec, config: Any) -> None:
        test = request.source.splits.get("test", np.empty(0, int))
        self.rows = np.sort(ranked("watch", request.source, test)[:WATCHED])
        self._request, self._unlearner = request, spec.make(_config.static(config))
        self._images = request.source.images(self.rows)
        self._next = 0
        self.points: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.earlier = 0.0
        if self.rows.size and self._unlearner.phases:
            self._look(request.model, 0)
        self._began, self._before = time.perf_counter(), self.seconds
        self._done: float | None = None

    def __call__(self, event: Event) -> None:
        if event.steps >= self._next or bool(event.state.done):
            self._look(self._unlearner.finish(event.state.inner), event.steps)

    def get(self) -> dict[str, Any]:
        """Return what has been seen so far, plain JSON, to be `put` back when the run is resumed."""
        own = time.perf_counter() - self._began - self.meanwhile if self._done is None else self._done
        return {"points": self.points, "next": self._next, "spent": self.earlier + own}

    def put(self, seen: Mapping[str, Any]) -> None:
        """Take up what was seen before the run was stopped."""
        self.points = [(int(step), float(share)) for step, share in seen["points"]]
        self._next, self.earlier = int(seen["next"]), float(seen.get("spent", 0.0))

    @property
    def meanwhile(self) -> float:
        """Seconds of looking since the method began, in this process."""
        return self.seconds - self._before

    def stop(self) -> None:
        """The method is done: what comes is measuring, and no part of its time."""
        self._done = time.perf_counter() - self._began - self.meanwhile

    def _look(self, model: Model, step: int) -> None:
        began = time.perf_counter()
        with _progress.listening(None):
            logits = inference.logits(model, self._images)
        self.points.append((step, accuracy(logits, self._request.source.labels[self.rows])))
        self._next = step + max(1, math.ceil(step * 0.2))
        self.seconds += time.perf_counter() - began


def _both(watch: Watch, more: Callback | None) -> Callable[[Event], None] | None:
    if more is None:
        return watch if watch.rows.size else None

    def tell(event: Event) -> None:
        if watch.rows.size:
            watch(event)
        more(event, watch.points)

    return tell


def peak_memory() -> dict[str, int]:
    """Return the most bytes held so far: by the process where the system tells, by an accelerator if there is one."""
    found = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stats = jax.local_devices()[0].memory_stats() or {}
    return found | ({"device": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {})


def _class_names(model: Model, source: Source) -> Sequence[str]:
    names = source.class_names or ()
    return names if len(names) == model.spec.num_classes else ()

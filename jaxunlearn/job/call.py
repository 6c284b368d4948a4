"""The whole job as one call."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn import (
    _config,
    _progress,
    _tree,
    _validate,
    artefacts as artefact_files,
    data as data_sources,
    loop,
    methods,
    report,
)
from jaxunlearn._types import GOALS, Artefact, Goal, MethodSpec, Model
from jaxunlearn.data import Source
from jaxunlearn.job import opening, previous as chain, resume
from jaxunlearn.job.arrays import source_of
from jaxunlearn.job.request import Request, public_rows
from jaxunlearn.job.work import Measured, perform
from jaxunlearn.report import RunRecord

#: What methods need or use that is no artefact.
_APART = ("retain", "public", "held", "taps", "init")


def unlearn(
    model: Model,
    forget: Any,
    *,
    data: str | Source | None = None,
    ids: Sequence[Any] | None = None,
    retain: Any = None,
    test: Any = None,
    public: Any = None,
    artefacts: Mapping[str, Any] | None = None,
    goal: Goal = "misclassify",
    target: Any = None,
    method: str | MethodSpec = methods.DEFAULT,
    config: Any = None,
    seed: int = 0,
    depth: bool = False,
    class_names: Sequence[str] = (),
    limits: Mapping[str, int] | None = None,
    images: bool = True,
    precision: str = "highest",
    progress: _progress.Listener | None = None,
    previous: str | os.PathLike[str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
) -> RunRecord:
    """Measure a network, make it forget, measure it again, and return the record of it all.

    What ``jaxunlearn unlearn`` does, with the same numbers, on arrays or on a
    data set. The method sees the network and the forget set, and of the rest
    only what it declares to need; retain and test sets are there to be measured.

    Args:
      model: the classifier; it is not changed, the new one is ``record.result.model``.
      forget: a pair ``(x, y)``: x (k, *input_shape) floats in the network's box, or uint8; y (k,) labels. With
        ``data``: rows of the training split, or text as ``--forget`` takes it, such as ``"5,57"`` or ``"class:3"``.
      data: a `jaxunlearn.data.Source`, or text as ``--data`` takes it, in place of the arrays of all three sets.
        Pictures that text names are brought to the network's size; of a Source that is for whoever opens it
        (`jaxunlearn.data.Reading`).
      ids: (k,) names of the instances for reports; default their numbers.
      retain: pair ``(x, y)``, other training data, to be measured (and seen by methods that need it), or None.
      test: pair ``(x, y)``, to be measured, or None.
      public: (n, *input_shape) unlabelled images for a method that uses them, or None; at most 4,000 of them are used,
        drawn by the seed.
      artefacts: by kind, for a method that needs or uses them (`jaxunlearn.artefacts`); "anchors" is an array, and
        "original" the model before the first of several requests.
      goal: "misclassify" or "relabel".
      target: relabelling: (k,) labels, one for all, or None for random other ones, drawn by the seed.
      method: name of a method, or its MethodSpec.
      config: its Config, or a mapping of the fields that are not to have their defaults.
      seed: of everything random, 0 to 2**32 - 1.
      depth: whether to measure how deep the forgetting goes, too (`jaxunlearn.audits.depth`); images only.
      class_names: C names in the order of the network's outputs, for arrays, and for files whose classes have names.
      limits: how many instances of "retain" and of "test" are measured, a fixed random choice; default all.
      images: whether reports may show the instances.
      precision: of float32 matrix products on accelerators: "highest", "high" or "default".
      progress: ``progress(label, done, total)`` is told how far long work is; total may be None.
      previous: folder of an earlier run, which made ``model``, on the same ``data``: what it and those before it forgot
        is to stay forgotten, and is measured again; what its method left behind is offered, too.
      state_dir: folder of its own in which long work keeps its state: after being killed, the same call goes on from
        there. It is gone when all is done.

    Returns:
      A `RunRecord`: ``dataframe()``, ``figures()``, ``save(folder)``. After Ctrl-C it holds what was reached, and its
      ``result.stop_reason`` is "interrupted".

    Raises:
      ValueError, TypeError: anything that does not fit, by name, before any work.
      FileNotFoundError: ``previous`` is not a run.
      FileExistsError: ``state_dir`` holds something else.
      BlockingIOError: another process has ``state_dir``.
      InfeasibleError: no change of the weights can meet what is asked for.
    """
    spec = methods.get(method) if isinstance(method, str) else method
    if config is None or isinstance(config, Mapping):
        config = _config.from_mapping(spec.Config, config or {})
    _validate.one_of("goal", goal, GOALS)
    _validate.one_of("precision", precision, ("highest", "high", "default"))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}; got {seed!r}")
    if depth and len(model.spec.input_shape) != 3:
        raise ValueError(f"depth is measured on images; the network takes inputs of shape {model.spec.input_shape}")
    offered = _offered(public, artefacts or {}, spec, model, int(seed))
    own = {"ids": ids, "retain": retain, "test": test}
    if data is None:
        source, rows = _of_arrays(model, forget, class_names=class_names, **own)
    else:
        source, rows = _of_data(model, forget, data, own, tuple(map(str, class_names)), seed)
    request = Request(
        model=model,
        source=source,
        rows=rows,
        target=_targets(target, goal, source, rows, model, seed),
        goal=goal,
        seed=int(seed),
        limits=_limits(limits or {}),
        **offered,
    )
    if previous is not None:
        if data is None:
            raise ValueError(
                "previous goes with data: arrays have no names by which what was forgotten is found again "
                "(a jaxunlearn.data.Source of them has)"
            )
        request = _after(report.read_run(previous), request)
    if request.inversion is not None:
        artefact_files.check_model(request.inversion, request.first)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(precision))
        if progress is not None:
            stack.enter_context(_progress.listening(progress))
        problem = request.problem(spec)
        loop.check(spec, problem, config)
        facts = {"device": jax.devices()[0].platform, "precision": precision}
        asked = {} if state_dir is None else resume.asked(request, problem, spec, config, **facts)
        stack.enter_context(resume.kept_in(state_dir, asked))
        before = Measured(model, request, when="before")
        extras = {
            **facts,
            "from": None if previous is None else os.path.abspath(previous),
            "reading": opening.facts_of(source),
            "first_network": chain.first_network(request, spec),
        }
        record = perform(request, problem, spec, config, before, deep=depth, images=images, extras=extras)
    if state_dir is not None and record.result.stop_reason != "interrupted":
        resume.clear(state_dir)
    return record


def _offered(public: Any, artefacts: Mapping[str, Any], spec: MethodSpec, model: Model, seed: int) -> dict[str, Any]:
    """Return what a method is offered beside network and forget set, as fields of a request."""
    for kind in artefacts:
        if kind in _APART:
            raise ValueError(f"{kind} is no artefact: it has an argument of its own, or comes with the model")
    for kind in ["public"] * (public is not None) + list(artefacts):
        if kind not in (*spec.needs, *spec.uses):
            raise ValueError(f"method {spec.name!r} has no use for {kind}; leave it out")
    for kind, value in artefacts.items():
        expected = {"original": Model, "anchors": object}.get(kind, Artefact)
        if not isinstance(value, expected):
            raise TypeError(f"artefacts[{kind!r}] must be of type {expected.__name__}; got {type(value).__name__}")
        if isinstance(value, Artefact) and kind != "proxies":  # those may be of the first network
            artefact_files.check_model(value, model)
    if public is not None:
        _validate.inputs("public", public, model.spec)
    return {
        "public": None if public is None else np.asarray(public)[public_rows(len(public), seed)],
        "inversion": artefacts.get("proxies"),
        "original": artefacts.get("original"),
        "artefacts": {kind: value for kind, value in artefacts.items() if kind not in ("proxies", "original")},
    }


def _of_arrays(model: Model, forget: Any, **sets: Any) -> tuple[Source, np.ndarray]:
    if isinstance(forget, str):
        raise ValueError(f"forget={forget!r} names instances of a data set: give data, too, or arrays (x, y)")
    source = source_of(model.spec, forget, **sets)
    return source, np.arange(len(forget[1]))


def _of_data(
    model: Model, forget: Any, data: str | Source, own: Mapping[str, Any], class_names: tuple[str, ...], seed: int
) -> tuple[Source, np.ndarray]:
    if isinstance(data, str):
        source = opening.open_for(model, data, class_names)
    elif isinstance(data, Source):
        source, own = data, {**own, "class_names": class_names or None}
        names = source.class_names or ()
        in_order = "classes" in dict(source.notes)  # sorted, as labels 0, 1, ...
        if in_order and names and len(names) != model.spec.num_classes:
            need = f"data.Reading(num_classes={model.spec.num_classes}, classes=...)"
            raise ValueError(f"{source.name} has {len(names)} classes, the network another number: open it with {need}")
    else:
        raise TypeError(f"data must be a Source or text; got {type(data).__name__}")
    for name, value in own.items():
        if value is not None:
            raise ValueError(f"{name} goes with arrays: {source.name} has its own")
    opening.check_fit(model, source)
    if not isinstance(forget, str):
        forget = "row:" + ",".join(map(str, _rows(forget, source)))
    return source, data_sources.parse_forget(forget, source, seed=seed)


def _rows(forget: Any, source: Source) -> list[int]:
    try:
        rows = np.atleast_1d(np.asarray(forget))
    except ValueError:  # such as a pair of arrays
        rows = np.empty((0, 0))
    if rows.ndim != 1 or not len(rows) or not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"forget must be numbers of rows of {source.name}, or text; got {type(forget).__name__}")
    return [int(row) for row in rows]


def _after(run: report.Run, request: Request) -> Request:
    """Return a request as it is after an earlier one."""
    made = run.results.get("digests", {}).get("weights after")
    if made != _tree.model_digest(request.model):
        raise ValueError(f"model is not the network that {run.path} made: go on with that one")
    origin = run.results.get("origin")
    return dataclasses.replace(
        request,
        earlier=chain.earlier_of(run, request.source, request.rows),
        origin=origin,
        original=request.original or chain.original(origin, request.model),
        artefacts=chain.left_behind(run, request.model) | dict(request.artefacts),
    )


def _targets(target: Any, goal: Goal, source: Source, rows: np.ndarray, model: Model, seed: int) -> np.ndarray | None:
    if goal != "relabel":
        if target is not None:
            raise ValueError("target is for goal 'relabel'")
        return None
    if target is None or isinstance(target, str | int | np.integer):
        text = "random" if target is None else str(target)
        return data_sources.parse_targets(text, source, rows, seed=seed, num_classes=model.spec.num_classes)
    labels = np.asarray(target)
    if labels.shape != rows.shape or not np.issubdtype(labels.dtype, np.integer):
        what = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"target must have a label for each of the {len(rows)} instances; got {what}")
    return labels.astype(np.int32)


def _limits(limits: Mapping[str, int]) -> dict[str, int]:
    for name, limit in limits.items():
        _validate.one_of("limits", name, ("retain", "test"))
        _validate.positive_int(f"limits[{name!r}]", limit)
    return dict(limits)

"""What the flags of ``jaxunlearn unlearn`` ask for: read, checked and said in words before the work begins."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import convert, curvature, data as data_sources, report
from jaxunlearn._types import Artefact, MethodSpec, Model
from jaxunlearn.cli import _data, _model, _run
from jaxunlearn.job.previous import earlier_of, first_network, left_behind, original


def read(args: argparse.Namespace, spec: MethodSpec) -> tuple[_run.Request, str | None, dict[str, Any]]:
    """Return what is asked, the folder of the run it goes on from, and how the data are opened again."""
    previous = None if args.previous is None else report.read_run(args.previous)
    source, model = _data.open_with_model(args, previous)
    rows = data_sources.parse_forget(args.forget, source, seed=args.seed)
    target = None
    if args.goal == "relabel":
        classes = model.spec.num_classes
        target = data_sources.parse_targets(args.target or "random", source, rows, seed=args.seed, num_classes=classes)
    origin = _model.origin(args, model, previous)
    request = _run.Request(
        model=model,
        source=source,
        rows=rows,
        target=target,
        goal=args.goal,
        seed=args.seed,
        earlier=[] if previous is None else earlier_of(previous, source, rows),
        original=None if previous is None else original(origin, model),
        origin=origin,
        public=_data.public(args, model, args.seed),
        artefacts=_artefacts(args.artefact, spec, model, previous) | _anchors(args.anchors, model),
        limits={} if args.eval_limit is None else dict.fromkeys(("retain", "test"), args.eval_limit),
    )
    reading = _data.record(args, source, previous)
    return request, None if previous is None else str(previous.path), reading


def check_layers(request: _run.Request, config: Any) -> None:
    """Raise unless the tensors that a method is told to edit are there."""
    patterns = [pattern.strip() for pattern in getattr(config, "layers", "").split(",") if pattern.strip()]
    if patterns:
        try:
            curvature.select_paths(request.model.params, patterns)
        except ValueError as error:
            raise ValueError(f"--layers: {error}") from None


def plan(
    request: _run.Request, spec: MethodSpec, config: Any, args: argparse.Namespace, device: str
) -> list[tuple[str, str]]:
    """Return what is about to happen, for the reader."""
    source, sets = request.source, request.sets()
    names = source.ids[request.rows].tolist()
    shown = ", ".join(names[:8]) + (f", ... ({len(names) - 8} more)" if len(names) > 8 else "")
    goal = {"misclassify": "misclassify: none may keep its label", "relabel": "relabel: each gets a chosen other label"}
    base = spec.Config()
    changed = [
        f"{f.name}={getattr(config, f.name)}"
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != (getattr(base, f.name) if not args.dry_run else "")
    ]
    measured = ", ".join(f"{len(rows):,} {name}" for name, rows in sets.items())
    limit = " (a fixed random choice)" if request.limits else ""
    limit += ", and how deep it goes" if args.measure_depth else ""
    pairs = [
        ("network", _model.describe(request.model)),
        *_data.about(source, sets),
        ("forget", f"{len(names)} instance{'s' * (len(names) > 1)}: {shown}"),
        ("goal", goal[request.goal]),
        ("method", f"{spec.name}, seed {request.seed}, " + (", ".join(changed) or "default hyper-parameters")),
        ("measured", measured + limit),
        ("device", device),
    ]
    if request.earlier:
        held = ", to stay forgotten" if "held" in spec.uses else ", not held by this method"
        if first_network(request, spec) == "gone":
            held += "; the network before the first of them is not there any more: this one stands in for it"
        count = f"{len(request.earlier)} instances of earlier runs, measured again, not in retain"
        pairs.insert(3, ("earlier", count + held))
    if "proxies" in spec.uses:
        pairs.insert(-2, ("proxies", _stand_ins(request, config, args)))
    return pairs


def _stand_ins(request: _run.Request, config: Any, args: argparse.Namespace) -> str:
    """Return which images stand in for the data that are not seen, and what would be better."""
    cut, deep = "cut-and-paste images of the forget set", getattr(config, "depth", "none") != "none"
    given = "" if request.public is None else f"{len(request.public):,} public images"
    given = f"{args.inversion:,} images made from the network" if args.inversion else given
    if given:
        return given if deep else f"{cut}, and {given}"
    return cut + (
        "; --inversion 500 takes minutes, once for a network, and keeps a little more accuracy" if deep else ""
    )


def _artefacts(
    files: Sequence[str], spec: MethodSpec, model: Model, previous: report.Run | None
) -> dict[str, Artefact]:
    """Return what the user offers by kind, and what an earlier run left behind for the network that it made."""
    given = _model.offered(files, model)
    for file, kind in zip(files, given, strict=True):
        if kind not in (*spec.needs, *spec.uses):
            what = f"{Path(file).name}, an artefact of kind {kind!r}"
            raise ValueError(f"method {spec.name!r} has no use for {what}; leave it out")
    return ({} if previous is None else left_behind(previous, model)) | given


def _anchors(file: str | None, model: Model) -> dict[str, Any]:
    """Return the user's embeddings of the classes, if there are any."""
    if file is None:
        return {}
    arrays = convert.read_state_dict(file)
    shapes = {name: array.shape for name, array in arrays.items()}
    (array,) = arrays.values() if len(arrays) == 1 else (None,)
    if array is None or array.ndim != 2 or len(array) != model.spec.num_classes:
        raise ValueError(f"--anchors {file} must hold one array of {model.spec.num_classes} rows; it has {shapes}")
    return {"anchors": array}

"""One run of a comparison, in a process of its own: what it may hold of memory is its own, and a crash ends only it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxunlearn import _files, _memo, _tree, audits, data as data_sources, loop, methods, proxies
from jaxunlearn._types import Artefact, MethodSpec, Model, Problem
from jaxunlearn.cli import _data, _device, _errors, _flags, _model, _process, _progress, _proxies, _run
from jaxunlearn.job import digests

#: Cut-and-paste images of the forget set that no method sees, for the agreement with the original network.
HELD_OUT = 500
#: What a strength is multiplied by, in the order of trials.
FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 8.0, 0.0625, 16.0)
#: Folder of what trials leave for the next one.
KEPT = "kept"
#: Flags that say which runs there are, or how they are told of, and change none.
ASIDE = ("out", "methods", "seeds", "trials", "quiet", "json", "compile_cache")
#: Exit status of a process that was told to stop.
STOPPED = 130
#: Letters of a run's file name that its method and settings may take.
_LONGEST = 120


class Entry(NamedTuple):
    """A method of a comparison with its settings, as given: ``NAME[:FIELD=VALUE]...``."""

    label: str
    method: str
    preset: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read an entry; raise ValueError for an unknown method, field or value."""
        name, *pairs = text.split(":")
        settings = [(field, value) for field, _, value in (pair.partition("=") for pair in pairs)]
        if any("=" not in pair for pair in pairs):
            raise ValueError(f"--methods {text}: write settings as NAME:FIELD=VALUE, such as minimal-edit:depth=crops")
        twice = [field for field, _ in settings if [given for given, _ in settings].count(field) > 1]
        if twice:
            raise ValueError(f"--methods {text}: {twice[0]} is there twice")
        preset = dict(settings).get("preset", "default")
        if preset not in ("default", "published"):
            raise ValueError(f"--methods {text}: preset must be default or published; got {preset!r}")
        rest = tuple((field.replace("-", "_"), value) for field, value in settings if field != "preset")
        entry = cls(text, methods.get(name).name, preset, rest)
        entry.config()
        return entry

    @property
    def spec(self) -> MethodSpec:
        return methods.get(self.method)

    def config(self, factor: float = 1.0) -> Any:
        """Return the method's Config, its strength times a factor (held inside its range)."""
        parser = _flags.Parser(prog=self.label, add_help=False)
        _flags.add_method_flags(parser, self.spec)
        known = {field.name: field for field in dataclasses.fields(self.spec.Config)}
        argv = []
        for name, value in self.settings:
            if name not in known:
                fields = ", ".join(known)
                raise ValueError(f"--methods {self.label}: {self.method} has no field {name!r}; it has {fields}")
            if isinstance(known[name].default, bool):
                if value not in ("true", "false"):
                    raise ValueError(f"--methods {self.label}: {name} must be true or false; got {value!r}")
                argv.append(f"--{'no-' * (value == 'false')}{name.replace('_', '-')}")
            else:
                argv.append(f"{_flags.flag(name)}={value}")
        try:
            args = parser.parse_args(argv)
            config = _flags.config_of(self.spec, argparse.Namespace(**vars(args), preset=self.preset))
        except _errors.UserError as error:
            raise ValueError(f"--methods {self.label}: {error}") from error
        if factor == 1.0:
            return config
        value, bounds = factor * getattr(config, self.spec.strength), known[self.spec.strength].metadata
        value = value if bounds["low"] is None else max(value, bounds["low"])
        value = value if bounds["high"] is None else min(value, bounds["high"])
        return dataclasses.replace(config, **{self.spec.strength: value})

    def factors(self, trials: int) -> tuple[float, ...]:
        """Return what the strength is multiplied by in so many trials; two that give one value would be one trial."""
        values = {getattr(self.config(factor), self.spec.strength): factor for factor in reversed(FACTORS)}
        return tuple(factor for factor in FACTORS if factor in values.values())[:trials]

    def name(self, seed: int, factor: float, *, trial: bool = False) -> str:
        """Return the name of the file that keeps a run or a trial."""
        plain = "".join(c if c.isalnum() or c in "-_.=" else "," for c in self.label)
        if len(plain.encode()) > _LONGEST:  # a file name has at most 255 bytes
            plain = f"{self.method},{hashlib.sha256(self.label.encode()).hexdigest()[:16]}"
        return f"{plain}-seed{seed}" + f"-x{factor:g}" * (factor != 1) + "-trial" * trial + ".json"


def split(given: str) -> list[str]:
    """Return the entries of a list with commas, in which globs of a setting of text may stand with commas, too.

    >>> split("neggrad,minimal-edit:layers=conv1*,linear*,adv")
    ['neggrad', 'minimal-edit:layers=conv1*,linear*', 'adv']
    """
    specs, texts = methods.all_specs(), list[str]()
    for text in given.split(","):
        method, _, settings = texts[-1].partition(":") if texts else ("", "", "")
        last = settings.rpartition(":")[2].partition("=")[0].replace("-", "_")
        fields = dataclasses.fields(specs[method].Config) if method in specs else ()
        free = [f.name for f in fields if isinstance(f.default, str) and f.metadata["choices"] is None]
        if last in free and text.partition(":")[0] not in specs:
            texts[-1] += f",{text}"
        else:
            texts.append(text)
    return texts


def in_process(work: Any, args: argparse.Namespace, path: Path, *more: Any) -> dict[str, Any]:
    """Do a piece of work in a fresh process and return what it wrote; the file is there only if it is whole.

    Raises:
      UserError: the work ended with one, or its process died.
      OSError: what it gave cannot be written, as what comes after it could not.
      KeyboardInterrupt: it was interrupted.
    """
    context = multiprocessing.get_context("spawn")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(told, work, args, path, *more))
    with _process.apart():
        process.start()
    told.close()
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()
        process.join()
        raise
    if process.exitcode == STOPPED:
        raise KeyboardInterrupt
    with contextlib.suppress(EOFError):  # it told of nothing
        kind, line = heard.recv()
        raise kind(line)
    if process.exitcode or not path.exists():
        code = process.exitcode or 0
        how = f"was killed by signal {-code} (9: often out of memory)" if code < 0 else f"ended with status {code}"
        raise _errors.UserError(f"the process of this run {how}")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON aside and put it in place in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _errors.writing(path), _files.in_place(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode())


def before(args: argparse.Namespace) -> dict[str, Any]:
    """Check what is asked, measure the network as it is, and return the facts that all runs share."""
    with _errors.user_input():
        request = _request(args)
        found = _model.offered(args.artefact, request.model)
    measured = _run.Measured(request.model, request, when="before")
    spec = request.model.spec
    return {
        "asked": asked(args),
        "network": _model.describe(request.model),
        "arch": spec.recipe.arch if spec.recipe is not None else "",
        **_same(request, found),
        "data": request.source.name,
        "notes": request.source.notes,
        "accuracy": measured.accuracy,
        "sizes": measured.sizes,
        "offered": sorted(
            [*found, *(["public"] if args.public else []), *(["proxies"] if args.inversion else [])]
            + (["taps"] if spec.taps_fn is not None else [])
            + (["init"] if spec.init_fn is not None else [])
        ),
    }


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what makes runs comparable: the network, the data, the forget set, what is measured."""
    return {name: value for name, value in vars(args).items() if name not in ASIDE}


def _same(request: _run.Request, offered: Mapping[str, Artefact]) -> dict[str, Any]:
    """Return what every run must find again: names of files stay where their content does not."""
    forget, ids = request.forget(), request.source.ids[request.rows].tolist()
    other: dict[str, Any] = {kind: dict(artefact.arrays) for kind, artefact in offered.items()}
    other |= {} if request.public is None else {"public": request.public}
    return {
        "model_digest": _tree.model_digest(request.model),
        "ids": ids,
        "forget_digest": digests.forget_set(forget.x, forget.y, ids),
        "measured_digest": {name: digests.numbers(rows) for name, rows in request.sets().items()},
        "other_digest": _tree.digest(other),
    }


#: What is to be said where one of `_same` is another.
_OTHER = {
    "model_digest": "--weights holds another network",
    "ids": "--forget names other images",
    "forget_digest": "--data holds other images under the names of --forget",
    "measured_digest": "--data, --retain-data or --test-data holds other images",
    "other_digest": "--artefact or --public holds something else",
}


def trial(args: argparse.Namespace, entry: Entry, seed: int, factor: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Try a strength and return what chooses it: instances forgotten, agreement with the original network.

    No test or retained image is looked at.
    """
    spec, config = entry.spec, entry.config(factor)
    _, problem = _problem(args, spec, config, seed, facts)
    # Trials of a strength need the same adversarial images. Runs make their own: their seconds are told.
    with _memo.within(Path(args.out) / KEPT):
        result = loop.run(problem, method=spec, config=config, key=jax.random.key(seed))
    if result.stop_reason == "interrupted":
        raise KeyboardInterrupt
    return {
        "label": entry.label,
        "factor": factor,
        "config": dataclasses.asdict(config),
        "forgotten": int(result.forgotten.sum()),
        "agreement": _agreement(result.model, problem),
    }


def run(args: argparse.Namespace, entry: Entry, seed: int, factor: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Do one run and return its results, its memory and its agreement with the original network."""
    spec, config = entry.spec, entry.config(factor)
    request, problem = _problem(args, spec, config, seed, facts)
    measured = _run.Measured(request.model, request, when="before", only=("forget",))
    measured.accuracy, measured.sizes = dict(facts["accuracy"]), dict(facts["sizes"])
    record = _run.run(request, problem, spec, config, measured, deep=args.depth and _can_be_deep(request.model))
    if record.result.stop_reason == "interrupted":
        raise KeyboardInterrupt
    return {
        **record.results,
        "label": entry.label,
        "factor": factor,
        "agreement": _agreement(record.result.model, problem),
    }


def _problem(
    args: argparse.Namespace, spec: MethodSpec, config: Any, seed: int, facts: Mapping[str, Any]
) -> tuple[_run.Request, Problem]:
    """Return what is asked of a method, with the network and the forget set that the comparison began with."""
    with _errors.user_input():
        request = _request(args)
        offered = _model.offered(args.artefact, request.model)
        now = _same(request, offered)
        for name, what in _OTHER.items():
            if name in facts and now[name] != facts[name]:
                raise ValueError(f"{what} than when this comparison began: choose another folder")
        if args.inversion and "proxies" in (*spec.needs, *spec.uses):
            request = dataclasses.replace(request, inversion=_proxies.inversion(request.model, args.inversion))
        request = dataclasses.replace(request, artefacts=offered, seed=seed)
        problem = request.problem(spec)
        loop.check(spec, problem, config)
    return request, problem


def _agreement(model: Model, problem: Problem) -> dict[str, float | None]:
    """Return how far a model agrees with the original on cut-and-paste images that no method sees; JSON has no NaN."""
    made = proxies.cutmix(jax.random.key(999), problem.forget.x, HELD_OUT)
    found = audits.agreement(model, problem.model, made)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _child(told: Connection, work: Any, args: argparse.Namespace, path: Path, *more: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _process.prepared():
        try:
            _process.hear()
            with _device.chosen(args), _progress.shown(quiet=args.quiet):
                content = work(args, *more)
                try:
                    write(path, content)
                except OSError as error:
                    told.send((OSError, _errors.one_line(_errors.describe(error))))
                    sys.exit(_errors.WRONG_INPUT)
        except KeyboardInterrupt:
            os._exit(STOPPED)  # as in `jaxunlearn.cli.main`
        except Exception as error:
            line = _errors.told(error)
            if line is None:
                raise
            # Short enough for the pipe: nobody reads until this process has ended.
            told.send((_errors.UserError, _errors.one_line(line)))
            sys.exit(_errors.WRONG_INPUT)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed without a chance to tell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _request(args: argparse.Namespace) -> _run.Request:
    source, model = _data.open_with_model(args)
    rows = data_sources.parse_forget(args.forget, source, seed=args.forget_seed)
    target = None
    if args.goal == "relabel":
        classes, seed = model.spec.num_classes, args.forget_seed
        target = data_sources.parse_targets(args.target or "random", source, rows, seed=seed, num_classes=classes)
    limits = {} if args.retain_limit == 0 else {"retain": args.retain_limit}
    return _run.Request(
        model=model,
        source=source,
        rows=rows,
        target=target,
        goal=args.goal,
        public=_data.public(args, model, args.forget_seed),
        limits=limits,
    )


def _can_be_deep(model: Model) -> bool:
    return len(model.spec.input_shape) == 3

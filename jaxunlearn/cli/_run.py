"""One request from start to end, with a command's messages: the work itself is that of `jaxunlearn.job`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import curvature, report
from jaxunlearn.cli import _errors
from jaxunlearn.data import Source
from jaxunlearn.job import Earlier, Measured, Request, timed, work

__all__ = ["Earlier", "Measured", "Request", "check_out", "earlier_of", "run", "timed", "try_to_write", "write"]


def run(*args: Any, **more: Any) -> report.RunRecord:
    """Do `jaxunlearn.job.perform`; what asks for the impossible is a `UserError`."""
    try:
        return work.perform(*args, **more)
    except curvature.InfeasibleError as error:  # what is asked for contradicts itself
        raise _errors.UserError(str(error)) from error


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
        try_to_write(report.check_out(out, overwrite=overwrite).parent)


def try_to_write(folder: Path) -> None:
    """Raise an OSError unless something can be written to a folder, or to what is there of the way to it."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".jaxunlearn-") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def write(out: str | os.PathLike[str], record: report.RunRecord, *, overwrite: bool) -> Path:
    """Write a run folder and return its path; a disk that is full by now is a `UserError`, and leaves nothing."""
    try:
        return report.write_run(out, record, overwrite=overwrite)
    except OSError as error:
        raise _errors.UserError(f"cannot write {out}: {error.strerror or error}") from error

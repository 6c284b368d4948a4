"""One request from start to end, with a command's messages: the work itself is that of `jaxunlearn.job`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from jaxunlearn import curvature, report
from jaxunlearn.cli import _errors
from jaxunlearn.job import work
from jaxunlearn.job.request import Request
from jaxunlearn.job.work import Measured, timed

__all__ = ["Measured", "Request", "check_out", "run", "timed", "try_to_write", "write"]


def run(*args: Any, **more: Any) -> report.RunRecord:
    """Do `jaxunlearn.job.perform`; what asks for the impossible is a `UserError`."""
    try:
        return work.perform(*args, **more)
    except curvature.InfeasibleError as error:  # what is asked for contradicts itself
        raise _errors.UserError(str(error)) from error


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

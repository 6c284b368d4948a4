"""One request from start to end, with a command's messages: the work itself is that of `jaxunlearn.job`."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxunlearn import curvature, report
from jaxunlearn.cli import _errors
from jaxunlearn.job import work
from jaxunlearn.job.request import Request
from jaxunlearn.job.work import Measured, timed
from jaxunlearn.report.schema import RESULTS

__all__ = ["Measured", "Request", "check_apart", "check_out", "run", "timed", "try_to_write", "write"]

#: What flags read, by their names in the namespace.
DATA = ("data", "retain_data", "test_data", "public")
READ = ("weights", "previous", "run", "like", "artefact", "anchors", "classes", *DATA)


def run(*args: Any, **more: Any) -> report.RunRecord:
    """Do `jaxunlearn.job.perform`; what asks for the impossible is a `UserError`."""
    try:
        return work.perform(*args, **more)
    except curvature.InfeasibleError as error:  # what is asked for contradicts itself
        raise _errors.UserError(str(error)) from error


def check_out(out: str | os.PathLike[str], *, overwrite: bool, marker: str = RESULTS) -> None:
    """Raise a `UserError` unless a run can be written to a folder; found before any work, by trying."""
    with _errors.user_input():
        try_to_write(report.check_out(out, overwrite=overwrite, marker=marker).parent)


def check_apart(args: argparse.Namespace) -> None:
    """Raise a `UserError` where what is to be written would replace what is read, or come among pictures."""
    for flag in ("--out", "--log-dir"):
        given = getattr(args, flag[2:].replace("-", "_"), None)
        if given is None:
            continue
        place = Path(os.path.realpath(os.path.expanduser(given)))
        for reader, text, kind, path in _read(args):
            if flag == "--out" and (place == path or place in path.parents):
                raise _errors.UserError(f"--out {given} is, or holds, what {reader} {text} reads: choose another place")
            if kind == "folder" and path in place.parents:
                among = f"{flag} {given} lies among the pictures of {reader} {text}"
                raise _errors.UserError(f"{among}: choose another place")


def _read(args: argparse.Namespace) -> Iterator[tuple[str, str, str, Path]]:
    """Give what a command reads: the flag, its value, the kind of data, the path with links followed."""
    for name, value in vars(args).items():
        if name not in READ or value is None:
            continue
        for text in value if isinstance(value, list) else [value]:
            kind, colon, rest = text.partition(":")
            path = rest if name in DATA and colon else text
            flag = "--from" if name == "previous" else f"--{name.replace('_', '-')}"
            yield flag, text, kind if name in DATA else "", Path(os.path.realpath(os.path.expanduser(path)))


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

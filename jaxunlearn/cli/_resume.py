"""A run that was killed goes on: its state is kept beside the folder it is to make, and nobody else writes there."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import report
from jaxunlearn.cli import _errors
from jaxunlearn.job import resume

#: Flags that change neither what is done nor where: a command that differs in them is the same one.
ASIDE = ("--resume", "--overwrite", "--quiet", "--json", "--compile-cache", "--no-compile-cache")
LOG = "--log-dir"


def folder_of(out: str | os.PathLike[str]) -> Path:
    """Return the hidden folder beside a run's folder in which its state is kept until it is done."""
    path = Path(os.path.abspath(out))
    return path.parent / f".{path.name}.resume"


def kept(out: str | os.PathLike[str]) -> bool:
    """Return whether there is a state to go on from."""
    return bool(resume.states(folder_of(out)))


def same_command(a: str, b: str) -> bool:
    """Return whether two command lines ask for the same.

    >>> same_command("jaxunlearn unlearn --out a --log-dir b --resume", "jaxunlearn unlearn --out a --json")
    True
    """
    plain = []
    for text in (a, b):
        words = [word for word in shlex.split(text) if word not in ASIDE and not word.startswith(f"{LOG}=")]
        plain.append([word for before, word in zip(["", *words], words, strict=False) if LOG not in (before, word)])
    return plain[0] == plain[1]


def finished(out: str | os.PathLike[str], command: str) -> report.Run | None:
    """Return the run that is there already, if the same command made it and was not interrupted."""
    if folder_of(out).exists() or not report.is_run(out):
        return None
    run = report.read_run(out)
    done = run.results["stop_reason"] != "interrupted" and same_command(run.results.get("command") or "", command)
    return run if done else None


def replaces(out: str | os.PathLike[str]) -> bool:
    """Return whether what is there is an interrupted run whose state is kept, so that going on may replace it."""
    return kept(out) and report.is_run(out) and report.read_run(out).results["stop_reason"] == "interrupted"


@contextlib.contextmanager
def only_run(out: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process; what is kept beside it goes when all is done, or nothing was kept yet.

    Raises:
      UserError: another process is writing to it.
    """
    folder = folder_of(out)
    missing = [path for path in folder.parents if not path.exists()]
    with contextlib.ExitStack() as stack, _errors.user_input():
        try:
            stack.enter_context(resume.held(folder))
        except BlockingIOError:
            raise ValueError(
                f"another process is writing to {out}: wait for it, or choose another output folder"
            ) from None
        holding = stack.pop_all()
    had, keep = kept(out), False
    try:
        yield
    except _errors.UserError as error:  # a command that does not fit what is kept must not cost it, nor a full disk
        keep = (had or isinstance(error.__cause__, OSError)) and kept(out)
        raise
    except BaseException:  # Ctrl-C, out of memory: there is something to go on from
        keep = kept(out)
        raise
    finally:
        holding.close()
        if not (keep or (folder / "interrupted").exists()):
            shutil.rmtree(folder, ignore_errors=True)
            for path in missing:  # those in which nothing was made after all
                with contextlib.suppress(OSError):
                    path.rmdir()


@contextlib.contextmanager
def journal(out: str | os.PathLike[str], asked: Mapping[str, Any], *, go_on: bool) -> Iterator[str | None]:
    """Keep the state of the work inside the block, and with ``resume`` take up what was kept of the same request.

    Args:
      out: the run's folder; inside `only_run`.
      asked: of `jaxunlearn.job.resume.asked`.
      go_on: whether to go on; else what was kept is dropped.

    Returns:
      What to tell of it, or None where there is nothing to tell.

    Raises:
      UserError: what was kept is of another request, or made by another version.
    """
    folder, told = folder_of(out), None
    states = resume.states(folder)
    if go_on and states:
        _check(folder, asked)
        seconds = time.time() - max(path.stat().st_mtime for path in states)
        told = f"from what was kept {_ago(seconds)} ago"
    elif go_on:
        told = "nothing was kept: from the beginning"
    else:
        for path in states:
            path.unlink()
    with _errors.user_input():
        (folder / "interrupted").unlink(missing_ok=True)
        opened = resume.opened(folder, asked, _no_state)
    with opened:
        yield told


def _no_state(error: OSError) -> None:
    reason = error.strerror or error
    _errors.say(f"no more state is kept, the run goes on: {reason}; if it is killed, --resume finds an older state")


def leave(out: str | os.PathLike[str]) -> None:
    """Leave what is kept where it is, for ``--resume``, although a result was written."""
    if kept(out):
        (folder_of(out) / "interrupted").touch()


def _check(folder: Path, now: Mapping[str, Any]) -> None:
    try:
        found = resume.difference(folder, now)
    except ValueError as error:
        raise _errors.UserError(f"{error}: leave out --resume to begin anew") from None
    if found is not None:
        name, old, new = found
        raise _errors.UserError(
            f"--resume: what was kept is of another request, its {name} was {old}, now {new}: give the same command, "
            "or leave out --resume to begin anew"
        )


def _ago(seconds: float) -> str:
    """Return a length of time in words.

    >>> _ago(5), _ago(600), _ago(9000)
    ('5 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

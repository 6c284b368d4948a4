"""A request that goes on where it was killed: what it depends on, beside the state that its long work keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import _journal, _tree, report
from jaxunlearn._types import Artefact, Batch, MethodSpec, Model, Problem
from jaxunlearn.job.request import Request

ASKED, LOCK = "asked.json", "lock"


def asked(request: Request, problem: Problem, spec: MethodSpec, config: Any, **more: Any) -> dict[str, Any]:
    """Return what the numbers of a run depend on, plain JSON: one that is resumed must agree in all of it.

    Args:
      request: what is asked; problem: the part of it that the method sees.
      spec, config: the method and its hyper-parameters.
      **more: further facts, such as the device.
    """
    other = {"retain": problem.retain, "public": problem.public, **dict(problem.artefacts)}
    found = {
        "method": spec.name,
        "settings": dataclasses.asdict(config),
        "goal": request.goal,
        "seed": request.seed,
        "network": _tree.model_digest(request.model),
        "forget set": _tree.digest(problem.forget._asdict()),
        "other data": _tree.digest({name: _arrays(value) for name, value in other.items() if value is not None}),
        **more,
        "versions": report.record.versions(),
    }
    return dict(json.loads(json.dumps(found)))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it for this process alone.

    Raises:
      BlockingIOError: another process, or another call of this one, has it.
      ModuleNotFoundError: filelock is not installed.
    """
    try:
        import filelock
    except ModuleNotFoundError:
        raise ModuleNotFoundError("keeping state needs filelock: pip install 'jaxunlearn[cli]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process keeps its state there", str(folder)) from None
    try:
        yield
    finally:
        lock.release()


def states(folder: Path) -> list[Path]:
    """Return the files in which state is kept."""
    return sorted(folder.glob("*.npz"))


def difference(folder: Path, now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the first thing in which what was kept is of another request: its name, what it was and is; or None.

    Raises:
      ValueError: the folder does not say what it is of.
    """
    try:
        before = json.loads((folder / ASKED).read_text(encoding="utf-8"))
        different = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{folder} is damaged") from None
    if not different:
        return None
    old, new = (re.sub(r"(.{60}).+", r"\1...", str(each.get(different[0]))) for each in (before, now))
    return different[0], old, new


def opened(
    folder: Path, now: Mapping[str, Any], failed: Callable[[OSError], None] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Note what a run is of, and return the block in which work keeps its state in a folder, or goes on from it."""
    (folder / ASKED).write_text(json.dumps(now, indent=1), encoding="utf-8")
    return _journal.Journal(folder, _journal.INTERVAL, failed=failed).open()


@contextlib.contextmanager
def kept_in(folder: str | os.PathLike[str] | None, now: Mapping[str, Any]) -> Iterator[None]:
    """Have the work inside the block go on from a folder of its own, which is made, and `clear`ed where it stays empty.

    Args:
      folder: None is no folder.
      now: of `asked`.

    Raises:
      FileExistsError: something else is in it.
      BlockingIOError, ModuleNotFoundError: as `held`.
      ValueError: what was kept is of another request, or was made by another version.
    """
    if folder is None:
        yield
        return
    path = Path(os.path.abspath(folder))
    path.mkdir(parents=True, exist_ok=True)
    names = sorted(file.name for file in path.iterdir() if file.name != LOCK)
    odd = [name for name in names if name != ASKED and not (ASKED in names and name.endswith((".npz", ".part")))]
    if odd:
        raise FileExistsError(f"{path} holds something else, {odd[0]}: choose another state_dir")
    with held(path):
        try:
            if states(path) and (found := difference(path, now)) is not None:
                name, old, new = found
                raise ValueError(
                    f"what was kept in {path} is of another request, its {name} was {old}, now {new}: call it as "
                    "before, or choose another state_dir"
                )
            with opened(path, now):
                yield
        finally:
            if not states(path):
                clear(path)


def clear(folder: str | os.PathLike[str]) -> None:
    """Remove a folder of `kept_in`; what else is in it stays."""
    path = Path(os.path.abspath(folder))
    for file in [*states(path), *path.glob("*.part"), path / ASKED, path / LOCK]:
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _arrays(value: Any) -> Any:
    """Return the arrays of what a method is given beside the network and the forget set."""
    if isinstance(value, Model):
        return {"params": value.params, "model_state": value.model_state}
    if isinstance(value, Artefact):
        return dict(value.arrays)
    return value._asdict() if isinstance(value, Batch) else value

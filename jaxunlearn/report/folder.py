"""The run folder: made aside, put in place in one move, so that no half-written one is ever seen."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxunlearn import _files
from jaxunlearn.report.schema import CHECKPOINT, RESULTS, WEIGHTS, validate

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

REPORT, WEB = "report.md", "report.html"
#: What a folder of a training has in the place of ``results.json``.
TRAINING = "training.json"
#: In bytes: a folder of 255 takes no name beside it that is longer, and one inside a path of 4096 takes nothing.
_LONGEST_NAME, _LONGEST_PATH = 230, 3900


class Run(NamedTuple):
    """A run folder that was read.

    Attributes:
      path: the folder.
      results: the content of ``results.json``, validated.
    """

    path: Path
    results: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """Where the unlearned model lies, for `jaxunlearn.checkpoint`."""
        return self.path / CHECKPOINT

    @property
    def artefacts(self) -> list[Path]:
        """Files of the artefacts that the run's method made, for `jaxunlearn.artefacts`."""
        return sorted(self.path.glob("*.safetensors"))


def check_out(out_dir: str | os.PathLike[str], *, overwrite: bool = False, marker: str = RESULTS) -> Path:
    """Return the absolute output folder if a run can be written there; call it before the work begins.

    A path that does not exist, an empty folder and, with ``overwrite``, an
    earlier run are good places.

    Args:
      out_dir: where.
      overwrite: whether an earlier run may be replaced.
      marker: the file by which a run is known.

    Raises:
      FileExistsError: it exists and is not a run, or is one and ``overwrite`` is off.
      NotADirectoryError, PermissionError: its parent cannot hold it.
      OSError: its name is so long that what is written beside it or into it could not be.
      ValueError: its name holds bytes that are no text, which the writer of checkpoints does not take.

    Warns:
      Recovered: a process was killed when it had moved an earlier run aside, which was put back.
    """
    path = recovered(out_dir)
    if any("\udc80" <= char <= "\udcff" for char in str(path)):
        where = f"this locale ({sys.getfilesystemencoding()}): choose another output folder, or set LC_ALL=C.UTF-8"
        raise ValueError(f"{path} has a name that is no text in {where}")
    if len(os.fsencode(path.name)) > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError(
            errno.ENAMETOOLONG, f"is too long: {_LONGEST_NAME} bytes a name, {_LONGEST_PATH} in all", str(path)
        )
    if os.path.lexists(path) and not _is_empty_dir(path):
        if path.is_symlink() and not is_run(path, marker):
            raise FileExistsError(f"{path} is a symbolic link to {os.readlink(path)}: name the folder itself")
        if not is_run(path, marker):
            raise FileExistsError(f"{path} exists and is not a jaxunlearn run: choose another output folder")
        if not overwrite:
            raise FileExistsError(f"{path} holds an earlier run: choose another output folder or --overwrite it")
    parent = path.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"cannot make {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot make {path}: {parent} is read-only")
    return path


def write_run(out_dir: str | os.PathLike[str], record: RunRecord, *, overwrite: bool = False) -> Path:
    """Write a run folder and return its path.

    The folder holds ``results.json``, ``checkpoint/``, ``report.html`` and
    ``report.md``, PNG pictures and the artefacts that the method made
    (``KIND.safetensors``). A network without a recipe cannot be rebuilt from a
    checkpoint: its weights are kept in ``weights.npz``, by path
    (``params/conv/kernel``). The folder is made beside its final place and
    renamed, so a failure, a full disk or Ctrl-C leaves nothing, and an earlier
    run as it was.

    Args:
      out_dir: where; see `check_out`.
      record: what to write.
      overwrite: whether an earlier run may be replaced.

    Raises:
      FileExistsError, NotADirectoryError, PermissionError: as `check_out`.
      OSError: the disk is full, or another error of the file system.
    """
    path = check_out(out_dir, overwrite=overwrite)
    put_in_place(path, lambda folder: _fill(folder, record))
    return path


def put_in_place(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder beside its final place, have it filled and rename it; after a failure all is as it was.

    Killed between the two renames that replace a run, it leaves none in that
    place: `recovered` puts the earlier one back.

    Args:
      path: of `check_out`; what is there is replaced.
      fill: writes into the folder that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    made, old = aside / "new", aside / "old"
    try:
        made.mkdir()
        fill(made)
        try:
            _swap(made, path, old)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            _swap(made, path, old)  # another process found nothing there and put the earlier run back
    finally:
        if os.path.lexists(old) and made.exists():
            os.replace(old, path)
        shutil.rmtree(aside, ignore_errors=True)


def recovered(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path, at which an earlier run is again that a process had moved aside when it was killed.

    The new run, which is whole by then, stays where it was made.

    Warns:
      Recovered: an earlier run was put back; it names the places.
    """
    path = Path(os.path.abspath(path))
    if not path.name or os.path.lexists(path):
        return path
    for old in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.part/old"):  # as `tempfile` names folders
        if not (old.parent / "new").exists():  # all was in place, and only not tidied up
            continue
        try:
            old.rename(path)
        except OSError:  # a read-only place, or another process was faster
            continue
        text = f"{path} was about to be replaced when its process was killed: the earlier run is there again"
        warnings.warn(f"{text}, the new one is in {old.parent / 'new'}", _files.Recovered, stacklevel=3)
        break
    return path


def _swap(made: Path, path: Path, old: Path) -> None:
    if os.path.lexists(path):
        os.replace(path, old)
    os.replace(made, path)


@_files.one_line()
def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Raises:
      FileNotFoundError: it has no ``results.json``.
      ValueError: ``results.json`` is not JSON, or not what a run writes.

    Warns:
      Recovered: a process was killed when it had moved an earlier run aside, which was put back.
    """
    path = recovered(folder)
    try:
        results = _files.read_json(path / RESULTS)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is not a jaxunlearn run: it has no {RESULTS}") from None
    try:
        validate(results)
    except ValueError as error:
        raise ValueError(f"{path / RESULTS}: {error}") from None
    return Run(path, results)


def is_run(folder: str | os.PathLike[str], marker: str = RESULTS) -> bool:
    """Return whether a folder is a run that this library wrote, known by the file ``marker``."""
    try:
        results = _files.read_json(recovered(folder) / marker)
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and results.get("tool") == "jaxunlearn"


def _fill(folder: Path, record: RunRecord) -> None:
    # Inside the function: reading a run must not need matplotlib or orbax.
    from jaxunlearn import _tree, artefacts, checkpoint
    from jaxunlearn.report.figures import draw
    from jaxunlearn.report.page import markdown
    from jaxunlearn.report.web import html

    results = record.results
    validate(results)
    (folder / RESULTS).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    model = record.result.model
    if model.spec.recipe is not None:
        checkpoint.save(folder / CHECKPOINT, model)
    else:
        paths = _tree.flatten_paths({"params": model.params, "model_state": model.model_state})
        np.savez(folder / WEIGHTS, **{path: np.asarray(leaf) for path, leaf in paths.items()})  # type: ignore[arg-type]
    for artefact in record.result.extras.get("artefacts", ()):
        artefacts.save(folder / f"{artefact.kind}.safetensors", artefact)
    pictures = draw(folder, record)
    # A path in the command, to the weights, may hold bytes that are no text.
    (folder / REPORT).write_text(markdown(record, pictures), encoding="utf-8", errors="backslashreplace")
    (folder / WEB).write_text(html(record, pictures, folder), encoding="utf-8", errors="backslashreplace")


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())

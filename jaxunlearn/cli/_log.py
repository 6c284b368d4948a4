"""Curves while a run or a training goes on, ``--log-dir``: a CSV file, and TensorBoard's files if it is installed."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _files, training
from jaxunlearn.cli import _errors, _run
from jaxunlearn.job.work import Callback
from jaxunlearn.loop import Event

#: The curves of unlearning, by step, and of training, by epoch.
STEPS, EPOCHS = "steps.csv", "epochs.csv"
#: Column of the accuracy on a sample of the test set; empty at steps where nobody looked.
WATCHED = "test_accuracy"
#: Ends the names of TensorBoard's files that are ours.
SUFFIX = ".jaxunlearn"
NO_BOARD = "for TensorBoard's files, too: pip install 'jaxunlearn[tensorboard]'"


def check(folder: str | os.PathLike[str], out: str | os.PathLike[str], *, replace: bool, file: str = STEPS) -> None:
    """Raise a `UserError` unless curves can be written to a folder; makes nothing.

    Args:
      folder: of ``--log-dir``.
      out: of ``--out``, which is put in place as a whole: nothing else may be written there.
      replace: whether the curves of an earlier run may go.
      file: the curves, `STEPS` or `EPOCHS`.
    """
    path, run = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    if path == run or run in path.parents:
        raise _errors.UserError(f"--log-dir {folder} must lie outside of --out {out}, which is put in place as a whole")
    with _errors.user_input():
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"--log-dir {folder} is not a folder")
        if (path / file).exists() and not replace and (path / file).read_bytes().count(b"\n") > 1:
            raise FileExistsError(
                f"--log-dir {folder} holds the curves of an earlier run: choose another folder, or --overwrite"
            )
        _run.try_to_write(path)


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str] | None, *, resume: bool) -> Iterator[Callback | None]:
    """Give what writes the curves, to be called at every step or segment; None without a folder.

    A log that cannot be written any more is told of once, and does not end the run.

    Args:
      folder: of ``--log-dir``, or None.
      resume: what is there stays until the first call, which has it all.
    """
    if folder is None:
        yield None
        return
    with contextlib.closing(_Steps(folder, resume=resume)) as log:
        yield log


@contextlib.contextmanager
def epochs(folder: str | os.PathLike[str] | None, *, resume: bool) -> Iterator[training.Callback]:
    """Give what writes the loss and the accuracy of a training, the mean of each epoch; the rest is as in `opened`."""
    if folder is None:
        yield lambda history: None
        return
    with contextlib.closing(_Epochs(folder, resume=resume)) as log:
        yield log


class _Log:
    """Lines of a table. The first call has all so far, after a resumption too: what was written before is replaced."""

    file: str
    key: str

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool) -> None:
        self._folder, self._fresh, self._failed = Path(os.path.abspath(folder)), True, False
        self._lines: list[dict[str, float]] = []
        self._columns: list[str] = [self.key]
        self._told = 0  # items of the history
        self._board: Any = None
        with _errors.user_input():
            self._folder.mkdir(parents=True, exist_ok=True)
            if not (resume and (self._folder / self.file).exists()):
                self._write()
        if importlib.util.find_spec("tensorboardX") is None:
            _errors.say(f"{self._folder} gets {self.file} only; {NO_BOARD}")

    def close(self) -> None:
        if self._board is not None:
            self._attempt(self._board.close)

    def _add(self, new: Sequence[dict[str, float]]) -> None:
        self._lines += new
        names = dict.fromkeys(name for line in new for name in line if name not in self._columns)
        if names or self._fresh:
            self._columns = sorted(
                [*self._columns, *names], key=lambda name: name == WATCHED
            )  # that column is the last
            self._write()
        else:
            with (self._folder / self.file).open("a", encoding="utf-8", newline="") as file:
                file.write(_text(new, self._columns))
        self._draw(new)
        self._fresh = False

    def _write(self) -> None:
        """Write the whole file aside and put it in place."""
        with _files.in_place(self._folder / self.file) as file:
            file.write((",".join(self._columns) + "\n" + _text(self._lines, self._columns)).encode())
            os.chmod(file.name, 0o644)

    def _draw(self, lines: Sequence[Mapping[str, float]]) -> None:
        if self._fresh and importlib.util.find_spec("tensorboardX") is not None:
            from tensorboardX import SummaryWriter

            for old in self._folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                old.unlink()
            self._board = SummaryWriter(str(self._folder), filename_suffix=SUFFIX)
        if self._board is not None:
            for line in lines:
                for name, value in line.items():
                    if name != self.key:
                        self._board.add_scalar(name, value, int(line[self.key]))
            self._board.flush()

    def _attempt(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except OSError as error:
            self._failed = True
            reason = error.strerror or error
            _errors.say(f"the curves end here, the run goes on: {self._folder}: {reason}")


class _Steps(_Log):
    """The loop's history by step, and the watched accuracy."""

    file, key = STEPS, "step"

    def __call__(self, event: Event, points: Sequence[tuple[int, float]]) -> None:
        self._attempt(lambda: self._take(event, dict(points)))

    def _take(self, event: Event, seen: Mapping[int, float]) -> None:
        new: list[dict[str, float]] = [{"step": 0, WATCHED: seen[0]}] if self._fresh and 0 in seen else []
        step = int(self._lines[-1]["step"]) if self._lines else 0
        for item in event.rows[self._told :]:
            for row in _steps(item):
                step += 1
                new.append({"step": step, **row} | ({WATCHED: seen[step]} if step in seen else {}))
        self._told = len(event.rows)
        self._add(new)


class _Epochs(_Log):
    """Means over the steps of each epoch of training."""

    file, key = EPOCHS, "epoch"

    def __call__(self, history: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._attempt(lambda: self._take(history))

    def _take(self, history: Sequence[Mapping[str, np.ndarray]]) -> None:
        new = [
            {"epoch": epoch, **{name: float(np.mean(info[name])) for name in ("loss", "accuracy")}}
            for epoch, info in enumerate(history[self._told :], self._told + 1)
        ]
        self._told = len(history)
        self._add(new)


def _steps(item: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Give the steps of an item of the loop's history: one where its values are scalars, else one an entry.

    >>> list(_steps({"loss": np.float32(2.0)})), list(_steps({"loss": np.array([1.0, 0.5])}))
    ([{'loss': 2.0}], [{'loss': 1.0}, {'loss': 0.5}])
    """
    columns = {name: np.ravel(np.asarray(value)).tolist() for name, value in item.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _text(lines: Sequence[Mapping[str, float]], columns: Sequence[str]) -> str:
    """Return lines of CSV; numbers with the nine digits that tell all float32 apart."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    for line in lines:
        table.writerow([f"{line[name]:.9g}" if name in line else "" for name in columns])
    return file.getvalue()

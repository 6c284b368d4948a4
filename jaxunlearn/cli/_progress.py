"""Show what long work reports: bars on a terminal, now and then a line elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from jaxunlearn import _progress

#: Seconds between two lines where there is no terminal.
EVERY = 10.0


@contextlib.contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Show progress on standard error while the block runs."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        with _Bars() as bars, _progress.listening(bars):
            yield
    else:
        with _progress.listening(_Lines()):
            yield


class _Bars:
    """One bar at a time; a finished stretch of over two seconds leaves a line."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._label, self._began = "", 0.0
        self._task: Any = None

    def __enter__(self) -> _Bars:
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._close()
        self._progress.__exit__(*raised)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        if label != self._label:
            self._close()
            self._label, self._began = label, time.monotonic()
            self._task = self._progress.add_task(label, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def _close(self) -> None:
        if self._task is None:
            return
        took = time.monotonic() - self._began
        if took > 2:
            task = next(task for task in self._progress.tasks if task.id == self._task)
            self._progress.console.print(f"{self._label}: {task.completed:,.0f} in {took:.0f} s", style="dim")
        self._progress.remove_task(self._task)
        self._task = None


class _Lines:
    """A line every few seconds, so that a log stays short and a long job is seen to live."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, label: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            print(f"{label}: {done:,}" + (f" of {total:,}" if total is not None else ""), file=sys.stderr, flush=True)

"""A bar on a terminal, with rate and time left, on one line whatever the width."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from jaxunlearn.cli._pace import clock, counted, left, rate

#: Columns of a terminal below which there is no room for a bar, and from which on for a long one.
NARROW, WIDE = 60, 100
#: Seconds of a stretch that leaves a line.
LONG = 2.0


class Bars:
    """One bar at a time; a finished stretch of over two seconds leaves a line."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            *_columns(console.width),
            console=console,
            transient=True,
            # A step may take longer than the 30 s of the default; rich keeps the last thousand reports.
            speed_estimate_period=math.inf,
            # What is printed goes above the bar, by way of standard error: not where a file or a program reads it.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._label, self._began, self._done = "", 0.0, 0
        self._task: Any = None

    def __enter__(self) -> Bars:
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._close()
        self._progress.__exit__(*raised)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._task is None or label != self._label or done < self._done:
            self._close()
            self._label, self._began = label, now
            self._task = self._progress.add_task(label, total=total, at=now)
        self._done = done
        self._progress.update(self._task, completed=done, total=total, at=now)

    def _close(self) -> None:
        if self._task is None:
            return
        took = time.monotonic() - self._began
        self._progress.remove_task(self._task)
        self._progress.refresh()
        self._task = None
        if took > LONG:
            console, told = self._progress.console, f": {self._done:,} in {clock(took)}"
            label = Text(self._label)
            label.truncate(max(console.width - len(told), 1), overflow="ellipsis")
            console.print(label + told, style="dim", highlight=False)


class _Told(ProgressColumn):
    """A column of text that a function gives of the task."""

    def __init__(self, tell: Callable[[Task], str], *, room: int = 0) -> None:
        # Room that is kept: a bar whose columns come and go cannot be read. Where the terminal is too narrow
        # rich takes from the columns that may wrap first.
        column = Column(no_wrap=True, justify="right", min_width=room) if room else Column()
        super().__init__(table_column=column)
        self._tell = tell

    def render(self, task: Task) -> Text:
        return Text(self._tell(task), no_wrap=True, overflow="ellipsis")


def _columns(width: int) -> list[ProgressColumn]:
    label, when = _Told(lambda task: task.description), _Told(_when, room=10)
    if width < NARROW:
        return [label, _Told(_share, room=4), when]
    bar = BarColumn(bar_width=30 if width >= WIDE else 10, table_column=Column(no_wrap=True))
    return [label, bar, _Told(_count, room=1), _Told(lambda task: rate(task.speed), room=6), when]


def _count(task: Task) -> str:
    widest = counted(task.total or 0, task.total, of="/")
    return counted(task.completed, task.total, of="/").rjust(len(widest))


def _share(task: Task) -> str:
    return counted(task.completed, None) if task.total is None else f"{task.percentage:.0f} %"


def _when(task: Task) -> str:
    if task.total is None or task.time_remaining is None:
        return f"{clock(task.elapsed or 0)} gone"
    return left(task.time_remaining - (time.monotonic() - task.fields["at"]), task.total)

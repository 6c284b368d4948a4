"""Show what long work reports: bars on a terminal, now and then a line elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from jaxunlearn import _progress

#: Seconds between two lines where there is no terminal; later a tenth of the time gone, at most `SELDOM` times as many.
EVERY = 10.0
SELDOM = 30


@contextlib.contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Show progress on standard error while the block runs."""
    if quiet:
        yield
    elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):  # such take no bars
        from jaxunlearn.cli._bars import Bars

        with Bars() as bars, _progress.listening(bars):
            yield
    else:
        with _progress.listening(_Lines()):
            yield


def counted(done: float, total: float | None, of: str = " of ") -> str:
    """Return how much is done.

    >>> counted(1200, 50000), counted(1200, None)
    ('1,200 of 50,000', '1,200')
    """
    return f"{done:,.0f}" if total is None else f"{done:,.0f}{of}{total:,.0f}"


def rate(speed: float | None) -> str:
    """Return a speed, in steps a second; the seconds of a step where it takes longer than one.

    >>> rate(1234.5), rate(2.5), rate(0.25), rate(None)
    ('1,234/s', '2.5/s', '4.0 s each', '')
    """
    if not speed:
        return ""
    value, unit = (speed, "/s") if speed >= 1 else (1 / speed, " s each")
    return (f"{value:,.0f}" if value >= 10 else f"{value:.1f}") + unit


def clock(seconds: float) -> str:
    """Return a length of time as clocks do.

    >>> clock(5.2), clock(754), clock(36000)
    ('0:05', '12:34', '10:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def left(seconds: float | None, total: float | None) -> str:
    """Return the time that is left, with a "<" where work may end before its total.

    >>> left(65, 100), left(65, _progress.AtMost(100)), left(None, 100)
    ('1:05 left', '<1:05 left', '')
    """
    return "" if seconds is None else "<" * isinstance(total, _progress.AtMost) + f"{clock(max(seconds, 0))} left"


class _Lines:
    """A line now and then, so that a log stays short and a long job is seen to live."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._label, self._start, self._first, self._done = "", self._began, 0, 0

    def __call__(self, label: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if label != self._label or done < self._done:
            # Rates count from the first report on: until then it may have been compiled, or gone on from a kept state.
            self._label, self._start, self._first = label, now, done
        self._done = done
        if now - self._last < min(max(EVERY, (now - self._began) / 10), SELDOM * EVERY):
            return
        self._last = now
        gone = now - self._start
        speed = (done - self._first) / gone if gone > 0 else 0.0
        if total is None:
            when = f"{clock(gone)} gone" if speed else ""
        else:
            when = left((total - done) / speed if speed else None, total)
        words = (f"{label}: {counted(done, total)}", rate(speed), when)
        print(", ".join(word for word in words if word), file=sys.stderr, flush=True)

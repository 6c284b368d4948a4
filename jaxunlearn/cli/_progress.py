"""Show what long work reports: bars on a terminal, now and then a line elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from jaxunlearn import _progress
from jaxunlearn.cli._pace import clock, counted, left, rate

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

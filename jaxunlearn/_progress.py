"""How long work tells of itself: host loops report, whoever listens decides what to show."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TypeAlias

#: ``listener(label, done, total)``; total is None where it is not known, `AtMost` where work may end before it.
Listener: TypeAlias = Callable[[str, int, int | None], None]

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)


class AtMost(int):
    """A total before which work may well end, such as a budget of steps."""


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Send the reports of everything inside the block to a listener.

    >>> seen = []
    >>> with listening(lambda label, done, total: seen.append((label, done, total))):
    ...     report("attack", 1, 2)
    >>> seen
    [('attack', 1, 2)]
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(label: str, done: int, total: int | None = None) -> None:
    """Tell the current listener, if any, how far some work is."""
    listener = _listener.get()
    if listener is not None:
        listener(label, done, total)

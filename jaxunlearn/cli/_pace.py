"""How far, how fast and how much longer, in a few letters."""

from __future__ import annotations

from jaxunlearn import _progress


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

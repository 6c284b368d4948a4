"""A user's mistake is one line and exit status 2; anything else is ours and keeps its traceback."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from jaxunlearn._files import Recovered, visible

OK, WRONG_INPUT, NOT_FORGOTTEN = 0, 2, 3
#: Characters of a line; a list of ids that is given as one argument may have a hundred thousand.
LONG = 2000


class UserError(Exception):
    """What the user can put right; its message is the line to show."""


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Turn the errors of reading and checking what the user gave into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(describe(error)) from error
    except ModuleNotFoundError as error:
        raise UserError(_missing(error)) from error
    except (ValueError, TypeError, MemoryError) as error:
        raise UserError(str(error) or type(error).__name__) from error


def told(error: Exception) -> str | None:
    """Return the line to show for an error, or None for one of ours, which is to keep its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return describe(error)
    # jax's class for it is a RuntimeError; jax itself may not be imported here.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        return f"out of memory (a smaller batch may fit, see --help): {error}".removesuffix(": ")
    return None


def describe(error: OSError) -> str:
    """Return the reason and the file of an operating system error in a few words.

    >>> describe(OSError(28, "No space left on device", "runs/a"))
    'runs/a: No space left on device'
    """
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """Name the place in an operating system error that names no file, as libraries leave it out for a full disk.

    >>> with writing("w.npz"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'w.npz'
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(place)) from error


@contextlib.contextmanager
def recovery_told() -> Iterator[None]:
    """Tell in one line of an earlier run that was put back."""
    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Recovered):
            say(str(message))
        else:
            show(message, category, *where, **more)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show


def say(text: str) -> None:
    """Print a line of ours on standard error."""
    print(f"jaxunlearn: {one_line(text)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Return a text on one line, in which nothing is hidden and nothing can steer a terminal.

    >>> one_line("a\\n  b ")
    'a b'
    """
    text = visible(re.sub(r"\s*[\n\r\v\f\x85\u2028\u2029]\s*", " ", text).strip())
    return text if len(text) <= LONG else f"{text[: LONG // 2]} ... {text[-LONG // 2 :]}"


def _missing(error: ModuleNotFoundError) -> str:
    if error.name is None:  # raised by us, with the remedy in it
        return str(error)
    return f"this needs the Python package {error.name}: pip install 'jaxunlearn[all]'"

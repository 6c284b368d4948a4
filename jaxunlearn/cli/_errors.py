"""A user's mistake is one line and exit status 2; anything else is ours and keeps its traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

OK, WRONG_INPUT, NOT_FORGOTTEN, INTERRUPTED = 0, 2, 3, 130


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


def describe(error: OSError) -> str:
    """Return the reason and the file of an operating system error in a few words.

    >>> describe(OSError(28, "No space left on device", "runs/a"))
    'runs/a: No space left on device'
    """
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def one_line(text: str) -> str:
    """Return a text on one line.

    >>> one_line("a\\n  b ")
    'a b'
    """
    return " ".join(text.split())


def _missing(error: ModuleNotFoundError) -> str:
    if error.name is None:  # raised by us, with the remedy in it
        return str(error)
    return f"this needs the Python package {error.name}: pip install 'jaxunlearn[all]'"

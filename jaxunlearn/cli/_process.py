"""What a command needs of its process: streams that can be written to, and signals that end it in order."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

#: Ctrl-C, and what ends a process that nobody at a terminal ends: to be as orderly.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Functions out of which no exception comes: Python calls them between any two lines, and prints what they raise.
_DEAF = ("_xla_gc_callback", "__del__")
_AGAIN = 0.02
_heard: int = signal.SIGINT


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Run the block with standard streams that are open and take any text, and `SIGNALS` as `KeyboardInterrupt`.

    A reader that leaves, as ``head`` does, is no reason to stop: the work goes
    on, and what is written then goes nowhere. Standard output that cannot be
    written otherwise, such as a file on a full disk, is an OSError where it is written.
    """
    global _heard
    _heard = signal.SIGINT
    _open_closed()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:  # not where it is captured, in tests and notebooks
        sys.stdout = _steady(sys.stdout, "standard output")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _steady(sys.stderr, None)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup has it ignored
                handlers[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def interrupted() -> int:
    """Return the exit status of what was interrupted: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _heard


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Start a process inside the block, in one piece; it hears of Ctrl-C nothing, and of the rest once it can `hear`.

    Ctrl-C is for the process that started it to tell.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear() -> None:
    """Hear of what ends a process that was started `apart`; inside `prepared`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS) - {signal.SIGINT})


def _stop(number: int, frame: Any) -> None:
    global _heard
    _heard = number
    if frame is not None and frame.f_code.co_name in _DEAF:
        threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()
        return
    raise KeyboardInterrupt


def _open_closed() -> None:
    """Open what was closed for us, as ``>&-`` does: else the next file that is opened becomes standard output."""
    number = os.open(os.devnull, os.O_RDWR)
    while number < 2:
        number = os.dup(number)
    if number > 2:
        os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
            setattr(sys, name, stream)


def _steady(stream: Any, name: str | None) -> Any:
    """Return a stream to the same place that takes any text, and whose reader may leave."""
    try:
        stream.flush()
        raw = _Raw(stream.fileno(), name)
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",  # a name of bytes in no encoding, a table in a locale of ASCII
        line_buffering=name is None or raw.isatty(),
        write_through=getattr(stream, "write_through", False),
    )


class _Raw(io.FileIO):
    """Write until the reader has gone or the disk is full; what comes then goes nowhere."""

    def __init__(self, number: int, told: str | None) -> None:
        super().__init__(number, "w", closefd=False)
        self._told, self._gone = told, False

    def write(self, data: Any) -> int:
        """Write bytes; raise OSError, once and by the stream's name, for what is no reader that left."""
        if not self._gone:
            try:
                return super().write(data)
            except OSError as error:
                self._gone = True
                if self._told is not None and not isinstance(error, BrokenPipeError):
                    raise OSError(error.errno, error.strerror, self._told) from None
        return len(memoryview(data).cast("B"))

"""Pieces of work side by side: one a core on CPU, in the order they were given."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import jax

S = TypeVar("S")
T = TypeVar("T")
#: Instances of a piece of work whose data stay in a core's cache, where a network of CIFAR's size is differentiated.
A_CORE = 8
#: What the threads of `ahead` are called.
_AHEAD = "jaxunlearn-ahead"


def ahead(fn: Callable[[T], S], items: Iterable[T]) -> Iterator[S]:
    """Yield ``fn(item)`` in order; on CPU one item a core at a time, reading little ahead.

    Small pieces of work whose data stay in a core's cache keep several cores
    busier than all cores in one piece. Elsewhere than on CPU, and within an
    item, a plain `map`. The caller's default device, matmul precision and x64
    hold in the threads. Closed early it waits for what is being done.

    >>> list(ahead(abs, [-1, 2]))
    [1, 2]
    """
    if jax.default_backend() != "cpu" or threading.current_thread().name.startswith(_AHEAD):
        yield from map(fn, items)
        return
    names = "jax_default_device", "jax_default_matmul_precision", "jax_enable_x64"
    device, precision, x64 = (getattr(jax.config, name) for name in names)

    def one(item: T) -> S:  # JAX's context managers are of the thread that enters them
        with jax.default_device(device), jax.default_matmul_precision(precision), jax.enable_x64(x64):
            return fn(item)

    cores = count_cores()
    waiting: deque[Future[S]] = deque()
    threads = _threads(cores)
    try:
        for item in items:
            waiting.append(threads.submit(one, item))
            if len(waiting) > 2 * cores:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first(waiting: deque[Future[S]]) -> S:
    result = waiting[0].result()  # still in the queue if we are interrupted here
    waiting.popleft()
    return result


@functools.cache
def _threads(cores: int) -> ThreadPoolExecutor:
    """Return threads that live as long as the process: Ctrl-C while one is joined would leave it to die at exit."""
    return ThreadPoolExecutor(cores, thread_name_prefix=_AHEAD)

"""What a figure depends on: cores, versions, what other processes do, compilation; and processes of their own."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Share of the cores' time that other processes may use during a run that counts.
QUIET = 0.05


class Worker:
    """A process of its own, so that memory, caches and settings are its own, that answers what it is asked.

    ``work(pipe, *args)`` runs in it: it receives tasks until None and sends an
    answer to each; one that is asked nothing sends its only answer by itself.
    """

    def __init__(self, work: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=work, args=(far, *args), daemon=True)
        self.process.start()
        far.close()  # so that the pipe ends with the process, not with this one

    def ask(self, task: Any) -> dict[str, Any]:
        """Return the answer to a task."""
        self.pipe.send(task)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return what the process sends next.

        Raises:
          SystemExit: it ended instead.
        """
        try:
            return dict(self.pipe.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            raise SystemExit(f"a process of the benchmark ended with status {code}; what it said is above") from None

    def end(self) -> None:
        """Let a process that waits for tasks end."""
        self.pipe.send(None)
        self.process.join()


def others_clock() -> Callable[[], float | None]:
    """Return a function that tells the CPU seconds that other processes have used so far; None where unknown.

    One busy neighbour makes PyTorch's spinning threads wait for each other: with
    eight the attack took 30 times as long on two threads as on one.
    """

    def tell() -> float | None:
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _, _, irq, soft, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
        return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK") - time.process_time()

    return tell


def compile_clock() -> Callable[[], float]:
    """Listen to JAX and return a function that tells the seconds spent compiling (trace to binary) so far."""
    import jax

    spent = [0.0]

    def listener(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            spent[0] += seconds

    jax.monitoring.register_event_duration_secs_listener(listener)
    return lambda: spent[0]


def limit_cores(threads: int | None) -> int:
    """Hold this process, so both libraries, to some of its cores; call before a device is touched."""
    if not hasattr(os, "sched_setaffinity"):
        threads = threads or os.cpu_count() or 1
    else:
        available = sorted(os.sched_getaffinity(0))
        threads = min(threads or len(available), len(available))
        os.sched_setaffinity(0, available[:threads])
    import torch

    torch.set_num_threads(threads)
    return threads


def hardware(threads: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        {line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")}
        if info.exists()
        else set()
    )
    return {
        "cpu": ", ".join(sorted(names)) or platform.processor(),
        "cores_used": threads,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
        },
    }

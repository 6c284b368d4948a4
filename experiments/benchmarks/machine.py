"""What a figure depends on: cores, versions, what other processes do, compilation; and processes of their own."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Of products and convolutions on a GPU, as `jax.default_matmul_precision` has them.
PRECISIONS = ("highest", "high", "default")
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


def found_device(asked: str) -> dict[str, Any]:
    """Return what a run is on: "device", "cpu" or "gpu", and its name; looks in a process of its own, which ends.

    Args:
      asked: "cpu"; "gpu"; or "auto", the GPU where JAX and PyTorch both see one.

    Raises:
      SystemExit: a GPU is asked for and one of the two sees none.
    """
    if asked == "cpu":
        return {"device": "cpu"}
    seen = Worker(_seen).answer()
    blind = [name for name, kind in seen.items() if kind is None]
    if asked == "gpu" and blind:
        raise SystemExit(f"--device gpu: no GPU is seen here by {' and '.join(blind)}: nothing was run")
    return {"device": "cpu"} if blind else {"device": "gpu", "gpu": seen}


def positive(text: str) -> int:
    """Return a flag's whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def positives(text: str) -> list[int]:
    """Return a flag's numbers of at least 1, joined by commas.

    >>> positives("16,64")
    [16, 64]
    """
    return [positive(part) for part in text.split(",")]


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--precision``."""
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="gpu where both see one")
    text = "on a GPU; PyTorch: TF32 below highest"
    parser.add_argument("--precision", choices=PRECISIONS, default="highest", help=text)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and the range.

    >>> spread([3.0, 1.0, 2.0], 1)
    '2.0 (1.0-3.0)'
    """
    shown = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return "{} ({}-{})".format(*shown)


def keep(kept: dict[str, Any], out: Path | None, name: str, now: datetime.datetime) -> None:
    """Write a run's JSON, whole or not at all: as ``out``, or by its name and time into ``results/``; say where."""
    out = out or Path(__file__).parent / "results" / f"{name}_{now:%Y%m%dT%H%M%S}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.part")
    aside.write_text(json.dumps(kept, indent=1) + "\n")
    aside.replace(out)
    print(f"\nKept in {out.name}", file=sys.stderr)


def on_what(device: dict[str, Any], precision: str) -> str:
    """Return the line that says what a table was measured on."""
    if device["device"] == "cpu":
        return "On the CPU. GPU: not run."
    return f"On a GPU ({device['gpu']['jax']}), precision {precision}."


def _seen(pipe: Any) -> None:
    import jax
    import torch

    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    theirs = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    pipe.send({"jax": gpus[0].device_kind if gpus else None, "torch": theirs})


def settle(device: str, precision: str, *, ours: bool) -> Callable[[], None]:
    """Bind this process to a device and both libraries to a precision; call before a device is touched.

    Args:
      device: "cpu" or "gpu"; on a CPU precision is what it is.
      precision: of products and convolutions: "highest" is float32 in both libraries; else PyTorch uses TF32, JAX what
        `jax.default_matmul_precision` makes of it.
      ours: whether JAX is to have the device; in PyTorch's processes it makes the inputs, on the CPU.

    Returns:
      What waits until PyTorch's work on the device is done.
    """
    import jax
    import torch

    if device == "cpu":
        return lambda: None
    if ours:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other contestants need memory, too
        jax.config.update("jax_default_matmul_precision", precision)
    else:
        jax.config.update("jax_platforms", "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "highest"
    return torch.cuda.synchronize


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

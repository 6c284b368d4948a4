"""The machine of a process that computes on a CPU: its memory is kept and counted, convolutions use all its cores.

A program of XLA's CPU backend asks for its scratch memory anew at every call.
glibc takes blocks over 32 MiB from the system and gives them back when they are
freed, so that every call faults its pages in again: 9,200 faults in one gradient
of ResNet-20 on 16 images, a sixth of its time.

jaxlib 0.10 hands convolutions to the YNNPACK library, which ran those of
ResNet-20's second and third stage on one core of two; Eigen, which XLA had before,
takes both (experiments/benchmarks/convolutions.py).
"""

from __future__ import annotations

import ctypes
import os

import jax

from jaxunlearn._ahead import count_cores

# Of mallopt(3); a trim threshold of -1 means never.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: Which version of jax knows the flag and is slow without it; XLA ends a process that names a flag it does not know.
_VERSION = (0, 10)
_FLAG = "xla_cpu_experimental_ynn_fusion_type"


def tune_cpu() -> bool:
    """Let this process keep memory that was freed, and convolve on all its cores; for programs on a CPU.

    For programs that own their process, as the command line does: a library
    must not decide it for others, so importing jaxunlearn does not. Call it
    before anything touches a device. Programs then run in the thread that calls
    them, whose memory is the part of the C library's that can be kept
    (``jax_cpu_enable_async_dispatch`` off). Peak memory may grow a little
    (a tenth, where it was measured), and less is given back while the process
    lives. Where there are several cores and jax is 0.10, ``XLA_FLAGS`` gets the
    flag that leaves convolutions to Eigen, unless it is there already; results
    then differ from those without by rounding.

    Returns:
      Whether the C library took it; glibc does, others are left as they are.

    >>> tune_cpu() in (True, False)
    True
    """
    convolve_on_all_cores()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return all([mallopt(name, value) == 1 for name, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))])


def convolve_on_all_cores() -> None:
    """Leave convolutions to Eigen, where it is the faster and this process's backend is still to be made."""
    flags = os.environ.get("XLA_FLAGS", "")
    # On one core YNNPACK is the faster of the two.
    if count_cores() > 1 and jax.version.__version_info__[:2] == _VERSION and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}=-individual_convolution".strip()


def host_memory() -> int | None:
    """Return the bytes of memory that the machine has, or None where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None

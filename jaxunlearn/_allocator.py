"""Keep the memory of one computation for the next, where the C library would give it back in between.

A program of XLA's CPU backend asks for its scratch memory anew at every call.
glibc takes blocks over 32 MiB from the system and gives them back when they are
freed, so that every call faults its pages in again: 9,200 faults in one gradient
of ResNet-20 on 16 images, a sixth of its time.
"""

from __future__ import annotations

import ctypes

import jax

# Of mallopt(3); a trim threshold of -1 means never.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Let this process keep memory that was freed, to use it again; for programs on a CPU.

    For programs that own their process, as the command line does: a library
    must not decide it for others, so importing jaxunlearn does not. Call it
    before anything touches a device: programs then run in the thread that calls
    them, whose memory is the part of the C library's that can be kept
    (``jax_cpu_enable_async_dispatch`` off). Peak memory may grow a little
    (a tenth, where it was measured), and less is given back while the process lives.

    Returns:
      Whether the C library took it: glibc does, others are left as they are.

    >>> keep_memory() in (True, False)
    True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return all([mallopt(name, value) == 1 for name, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))])

"""Where the arithmetic happens, and how exactly."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxunlearn._cpu import tune_cpu
from jaxunlearn.cli import _cache, _errors


@contextmanager
def chosen(args: argparse.Namespace) -> Iterator[str]:
    """Run the block on a kind of device and give its name.

    Args:
      args: with ``device``, "auto", "cpu", "gpu" or "tpu"; ``precision`` of
        float32 matrix products, "highest" (float32 throughout), "high" or
        "default" (the fastest; TF32 or bfloat16 on accelerators); ``compile_cache``,
        whether compiled programs are kept on disk.

    Raises:
      UserError: there is no such device.
    """
    device, precision = args.device, args.precision
    if device == "cpu":  # keeps a GPU from being claimed; without effect once a device was used
        jax.config.update("jax_platforms", "cpu")
    tune_cpu()
    try:
        found = jax.local_devices() if device == "auto" else jax.local_devices(backend=device)
    except RuntimeError as error:
        raise _errors.UserError(_none(device, error)) from error
    kept = _cache.compiled(kept=args.compile_cache)
    with kept, jax.default_device(found[0]), jax.default_matmul_precision(precision):
        kind = found[0].device_kind
        yield found[0].platform if kind == found[0].platform else f"{found[0].platform} ({kind})"


def _none(device: str, error: RuntimeError) -> str:
    """Return what to say where there is no such device."""
    try:
        found = jax.default_backend()
    except RuntimeError:  # there is none at all, as JAX_PLATFORMS has it
        return f"jax cannot use any device (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {error}"
    extra = "cuda" if device == "gpu" else device
    return (
        f"--device {device}: jax finds none here, only {found}; is there one, and is 'jaxunlearn[{extra}]' installed?"
    )

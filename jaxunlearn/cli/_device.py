"""Where the arithmetic happens, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxunlearn.cli import _errors


@contextmanager
def chosen(device: str, precision: str) -> Iterator[str]:
    """Run the block on a kind of device and give its name.

    Args:
      device: "auto", "cpu", "gpu" or "tpu".
      precision: of float32 matrix products: "highest" (float32 throughout),
        "high" or "default" (the fastest; TF32 or bfloat16 on accelerators).

    Raises:
      UserError: there is no such device.
    """
    if device == "cpu":  # keeps a GPU from being claimed; without effect once a device was used
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.local_devices() if device == "auto" else jax.local_devices(backend=device)
    except RuntimeError as error:
        extra = "cuda" if device == "gpu" else device
        raise _errors.UserError(
            f"--device {device}: jax finds none here, only {jax.default_backend()}; "
            f"is there one, and is 'jaxunlearn[{extra}]' installed?"
        ) from error
    with jax.default_device(found[0]), jax.default_matmul_precision(precision):
        kind = found[0].device_kind
        yield found[0].platform if kind == found[0].platform else f"{found[0].platform} ({kind})"

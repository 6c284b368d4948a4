"""Hyper-parameters as data: one frozen dataclass a method, each field described by `hparam`.

Command-line flags, JSON, docs and sweeps are generated from these fields. A
*traced* field becomes an array in the method's state, so that one compilation
serves every value and `jax.vmap` runs over several; a *static* field selects code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn._types import Array

C = TypeVar("C")


def hparam(
    default: Any,
    help: str,
    *,
    traced: bool = False,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    deviation: str | None = None,
) -> Any:
    """Declare a hyper-parameter field.

    Args:
      default: its value; its type (bool, int, float, str) is the field's.
      help: one line for the command line and the docs.
      traced: whether values become arrays (floats) or select code.
      unit: such as "pixels", "steps".
      low, high: closed range of numbers.
      choices: allowed values.
      deviation: id of the departure from published code that the field stands for.
    """
    meta = dict(help=help, traced=traced, unit=unit, low=low, high=high, choices=choices, deviation=deviation)
    return dataclasses.field(default=default, metadata=meta)


class BaseConfig:
    """Base of every method's Config: checks its fields when made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check(field, getattr(self, field.name))

    @classmethod
    def published(cls: type[C]) -> C:
        """Return the settings of the published code."""
        return cls()


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    meta, kind = field.metadata, type(field.default)
    if meta["choices"] is not None:
        _validate.one_of(field.name, value, meta["choices"])
    elif kind is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{field.name} must be true or false; got {value!r}")
    elif kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{field.name} must be an integer; got {value!r}")
        _validate.in_range(field.name, value, meta["low"], meta["high"])
    elif kind is float:
        _validate.in_range(field.name, value, meta["low"], meta["high"])


def traced(config: Any) -> dict[str, Array]:
    """Return the traced fields as float32 arrays, the ``hparams`` of `Unlearner.prepare`."""
    return {
        f.name: jnp.asarray(getattr(config, f.name), jnp.float32)
        for f in dataclasses.fields(config)
        if f.metadata["traced"]
    }


def static(config: C) -> C:
    """Return the config with traced fields at their defaults: equal for equal compiled code."""
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.metadata["traced"]}  # type: ignore[arg-type]
    return dataclasses.replace(config, **defaults)  # type: ignore[type-var]


def from_mapping(Config: type[C], values: Mapping[str, Any], *, base: C | None = None) -> C:
    """Make a config from named values; raise ValueError for a name the method does not have."""
    known = {f.name for f in dataclasses.fields(Config)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"unknown hyper-parameter {name!r}; this method has {', '.join(sorted(known))}")
    return dataclasses.replace(Config() if base is None else base, **values)  # type: ignore[type-var]

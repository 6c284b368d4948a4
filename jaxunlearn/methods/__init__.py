"""Registry of methods: every module of this folder that exports ``SPEC``, and installed entry points.

>>> "adv-imp" in names()
True
>>> get("neggrad").goals
('misclassify',)
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from jaxunlearn._types import MethodSpec

ENTRY_POINT_GROUP = "jaxunlearn.methods"
#: What is taken where no method is named, in Python as on the command line.
DEFAULT = "minimal-edit"


@cache
def all_specs() -> dict[str, MethodSpec]:
    """Return every method by name, ours and third parties', sorted.

    Raises:
      ValueError: two methods share a name.
    """
    specs: dict[str, MethodSpec] = {}
    ours = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").SPEC for name in ours]
    found += [entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)]
    for spec in found:
        if spec.name in specs:
            raise ValueError(f"two methods are named {spec.name!r}")
        specs[spec.name] = spec
    return dict(sorted(specs.items()))


def names() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(all_specs())


def get(name: str) -> MethodSpec:
    """Return a method by name.

    Raises:
      ValueError: there is none of that name; the message names close ones.
    """
    specs = all_specs()
    if name not in specs:
        close = difflib.get_close_matches(name, specs, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown method {name!r}; {hint}known: {', '.join(specs)}")
    return specs[name]

"""The package as a whole: lazy imports, the stub, what the core needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxunlearn

HEAVY = ("flax", "orbax", "tensorflow_datasets", "torch", "sklearn", "matplotlib", "rich", "PIL")


def test_import_loads_no_network_library():
    code = f"import sys, jaxunlearn; bad = [m for m in {(*HEAVY, 'jax')} if m in sys.modules]; assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_core_runs_without_the_extras():
    code = f"""
import sys
for name in {HEAVY}: sys.modules[name] = None
import jax
from jaxunlearn import loop, methods, testing
spec = methods.get("adv-imp")
result = loop.unlearn(testing.tiny_problem(), method=spec, config=testing.small_config(spec), key=jax.random.key(0))
assert result.steps > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", jaxunlearn._HOME)
def test_public_names_resolve(name):
    assert getattr(jaxunlearn, name).__name__ == name


def test_stub_lists_the_public_names():
    stub = ast.parse(Path(jaxunlearn.__file__).with_suffix(".pyi").read_text())
    listed = {alias.asname for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert listed == {*jaxunlearn._HOME, *jaxunlearn._ROOMS}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        jaxunlearn.nonsense  # noqa: B018


def test_module_runs_as_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "jaxunlearn", "--version"], check=True, capture_output=True, text=True
    )
    assert jaxunlearn.__version__ in shown.stdout

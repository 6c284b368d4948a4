"""The package as a whole: lazy imports, the stub, what the core needs."""

from __future__ import annotations

import ast
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import jaxunlearn
from jaxunlearn import _cpu

HEAVY = ("flax", "orbax", "tensorflow_datasets", "torch", "sklearn", "matplotlib", "rich", "PIL")


def test_import_loads_no_network_library():
    code = f"import sys, jaxunlearn; bad = [m for m in {(*HEAVY, 'jax')} if m in sys.modules]; assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_core_runs_without_the_extras():
    code = f"""
import sys
for name in {HEAVY}: sys.modules[name] = None
import jax, jaxunlearn
from jaxunlearn import loop, methods, testing
spec = methods.get("adv-imp")
result = loop.run(testing.tiny_problem(), method=spec, config=testing.small_config(spec), key=jax.random.key(0))
assert result.steps > 0
given = testing.tiny_problem()
record = jaxunlearn.unlearn(given.model, (given.forget.x, given.forget.y), method="neggrad")
assert record.results["goal_met"]
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


FAULTS = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from jaxunlearn import tune_cpu

if sys.argv[1] == "keep":
    assert tune_cpu()
run = jax.jit(lambda a: jnp.cumsum(a).at[::2].add(1.0).sum())  # scratch of 64 MiB at least
a = jnp.ones(2**24)
run(a).block_until_ready()
faults = []
for _ in range(7):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(a).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_memory_that_is_kept_is_not_faulted_in_again():
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    released, kept = faults("release"), faults("keep")
    assert released > 64 * 2**20 // resource.getpagesize() // 2, "the program has no large scratch memory"
    assert kept < released / 10


@pytest.mark.parametrize(
    ("cores", "version", "before", "after"),
    [
        (2, (0, 10, 2), "", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        (2, (0, 10, 2), "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        (2, (0, 10, 2), "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type="),
        (1, (0, 10, 2), "", ""),  # there it would be slower
        (2, (0, 12, 0), "", ""),  # a flag that XLA does not know would end the process
    ],
)
def test_convolutions_use_all_cores_where_the_flag_is_known(monkeypatch, cores, version, before, after):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("jax.version.__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", before)
    _cpu.convolve_on_all_cores()
    assert os.environ["XLA_FLAGS"] == after


def test_xla_knows_the_flag_that_is_given_to_it():
    program = "import jax; from jaxunlearn import tune_cpu; tune_cpu(); print(jax.device_count())"
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=env)

"""The benchmarks that a GPU is for: what they say without one, their table by hand, and that they run."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from experiments.benchmarks import accelerator, machine

without = pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")


def row(precision: str, seconds: float, after: float) -> dict[str, object]:
    sets = {"forget": 1.0, "retain": 0.5, "test": 0.25}
    return {"precision": precision, "seconds": seconds, "steps": 3, "before": sets, "after": sets | {"forget": after}}


def test_the_ratio_is_within_a_repeat() -> None:
    seconds = {"vmapped": [1.0, 2.0, 4.0], "one by one": [3.0, 2.0, 8.0]}
    kept = {"precision": [row("high", 1.5, 0.0)], "requests": {"seconds": seconds, "steps": [1, 2]}}
    assert accelerator.table(kept).splitlines()[2:] == [
        "| high | 1.50 | 3 | 100.00%, 0.00% | 50.00%, 50.00% | 25.00%, 25.00% |",
        "",
        "| requests | vmapped, s | one by one, s | vmapped is |",
        "|---|---|---|---|",
        "| 2 | 2.00 (1.00-4.00) | 3.00 (2.00-8.00) | 2.00 (1.00-3.00) times as fast |",
    ]


@without
def test_without_an_accelerator_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accelerator.main(["--out", str(tmp_path / "kept.json")])
    assert capsys.readouterr().out == "GPU, TPU: not run, there is none here.\n"
    assert not list(tmp_path.iterdir())


@without
def test_a_gpu_that_is_not_there_is_asked_for() -> None:
    pytest.importorskip("torch")
    with pytest.raises(SystemExit, match="--device gpu: no GPU is seen here by jax and torch: nothing was run"):
        machine.found_device("gpu")
    assert machine.on_what(machine.found_device("auto"), "highest") == "On the CPU. GPU: not run."


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    accelerator.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "kept.json")])
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [row["precision"] for row in kept["precision"]] == list(machine.PRECISIONS)
    assert len(kept["requests"]["steps"]) == accelerator.QUICK.requests
    assert accelerator.table(kept) in capsys.readouterr().out

"""The weak-scaling benchmark: its table by hand, and that it runs on fake devices."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from experiments.benchmarks import weak_scaling


def test_efficiency_is_against_one_device_in_the_same_repeat() -> None:
    seconds = {(1, 0): 1.0, (1, 1): 2.0, (2, 0): 2.0, (2, 1): 2.5}
    rows = [
        {"what": "attack", "devices": n, "repeat": repeat, "seconds": s, "hosts": 1}
        for (n, repeat), s in seconds.items()
    ]
    said = weak_scaling.table({"rows": rows, "each": 100, "fake": False}).splitlines()
    assert said[2:] == [
        "| attack | 1 | 100 | 1.500 (1.000-2.000) | 1.00 (1.00-1.00) |",
        "| attack | 2 | 200 | 2.250 (2.000-2.500) | 0.65 (0.50-0.80) |",
    ]
    assert weak_scaling.MEANINGLESS in weak_scaling.table({"rows": rows, "each": 100, "fake": True})


@pytest.mark.slow
def test_it_runs_on_fake_devices_and_says_that_the_figures_mean_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weak_scaling, "counts", lambda most: [1, most])
    weak_scaling.main(["--quick", "--out", str(tmp_path / "kept.json")])
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["fake"]
    assert {(row["what"], row["devices"]) for row in kept["rows"]} == {
        (what, n) for what in weak_scaling.WORK for n in (1, len(jax.devices()))
    }
    assert all(row["seconds"] > 0 for row in kept["rows"])
    said = capsys.readouterr().out
    assert weak_scaling.MEANINGLESS in said
    weak_scaling.main(["--from", str(tmp_path / "kept.json")])
    assert capsys.readouterr().out == said

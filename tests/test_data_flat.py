"""Memory does not grow with the pictures that are measured, and no process is forked to read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn import checkpoint, models
from tests.digits_net import ARCH

#: Pictures of the two folders, and bytes of one as the network takes it.
FEW, MANY, EACH = 200, 4800, 64 * 64 * 3 * 4
#: Measures both folders with nothing kept between reads, as with data too large for that, the first one twice, so
#: that all is compiled; the same pictures are forgotten of both, in the same steps, so that the second compiles nothing
#: more. Says the most memory that the process had had after each command (its own, not its parent's as ru_maxrss may
#: be) and whether it was forked.
MEASURE = """
import json, re, sys
import jaxunlearn.cli.main
from jaxunlearn.data import pictures

def done(argv):
    assert jaxunlearn.cli.main.main([*argv, "--quiet"]) in (0, 3), argv

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

forget = ["--forget", "0/0.png,1/1.png,2/2.png", "--method", "correct", "--goal", "relabel", "--target", "9"]
pictures.CACHE_BYTES, peaks, forks = 0, [], []
sys.addaudithook(lambda event, args: forks.append(event) if event in ("os.fork", "os.forkpty") else None)
for folder in ("few", "few", "many"):
    done(["evaluate", "--weights", "net", "--data", f"folder:{folder}", "--split", "train"])
    peaks.append(peak())
    argv = ["unlearn", "--weights", "net", "--data", f"folder:{folder}", *forget, "--max-passes", "2", "--no-images"]
    done([*argv, "--overwrite", "--out", f"out-{folder}"])
    peaks.append(peak())
print(json.dumps({"peaks": peaks, "forks": forks}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a process of its own says after measuring a few and many pictures."""
    if not Path("/proc/self/status").exists():
        pytest.skip("asks Linux for the memory")
    from PIL import Image

    root = tmp_path_factory.mktemp("flat")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i}.png")
    for folder, count in (("few", FEW), ("many", MANY)):
        for i in range(count):
            place = root / folder / str(i % 10)
            place.mkdir(parents=True, exist_ok=True)
            os.link(root / f"{i % len(pixels)}.png", place / f"{i}.png")
    recipe = models.recipe(ARCH, num_classes=10, input_shape=(64, 64, 3))
    checkpoint.save(root / "net", models.from_recipe(recipe, key=jax.random.key(0)))
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    results = json.loads((root / "out-many/results.json").read_text())
    assert results["sizes"] == {"forget": 3, "retain": MANY - 3}
    assert results["steps"] > 0
    return json.loads(ran.stderr.splitlines()[-1])


def test_memory_does_not_grow_with_the_pictures_that_are_measured(measured):
    *_, few, _, many = measured["peaks"]
    held = (MANY - FEW) * EACH  # 226 MB, were the split there at once
    assert many - few < held / 8, measured["peaks"]


def test_no_process_is_forked_to_read_pictures(measured):
    assert measured["forks"] == []

"""The notebook on the digits: kept without outputs, and run from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "digits.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Its cells of code after it was run in a kernel, in an empty folder."""
    notebook = read()
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cells, part):
    """The outputs of the one cell that has these words in it."""
    (cell,) = (cell for cell in cells if part in cell.source)
    return cell.outputs


def text(cells, part):
    return "\n".join(out.get("text") or out["data"]["text/plain"] for out in said(cells, part))


def test_it_is_kept_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert NOTEBOOK.stat().st_size < 20_000


def test_nothing_is_said_on_standard_error(cells):
    assert not [out.text for cell in cells for out in cell.outputs if out.get("name") == "stderr"]


def test_sixteen_digits_are_forgotten_and_little_else(cells):
    assert "forgotten after" in text(cells, "record.result.stop_reason")
    table = text(cells, "record.result.stop_reason")
    before, after = {}, {}
    for name in ("forget", "retain", "test"):
        before[name], after[name] = map(float, re.search(rf"^{name} +([\d.]+) +([\d.]+)$", table, re.M).groups())
    assert (before["forget"], after["forget"]) == (1.0, 0.0)
    assert before["test"] > 0.97
    assert after["test"] > before["test"] - 0.03
    assert after["retain"] > before["retain"] - 0.03


def test_dataframe_figures_and_comparison_are_shown(cells):
    (frame,) = said(cells, "record.dataframe()")
    assert frame["data"]["text/html"].count("<tr>") >= 17
    for part in ('figures["forgotten"]', 'figures["curves"]'):
        (picture,) = said(cells, part)
        assert len(picture["data"]["image/png"]) > 10_000
    rows = text(cells, "summary_table").splitlines()
    assert [name for name in ("before", "minimal-edit", "neggrad") if any(row.startswith(name) for row in rows)] == [
        "before", "minimal-edit", "neggrad",
    ]  # fmt: skip
    assert "mirrored" in text(cells, "recognised")
    for name in ("report.html", "results.json", "weights.npz"):
        assert name in text(cells, "record.save")

"""The tutorial runs as a notebook, and its cells show what its text says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .conftest import PATIENCE_SECONDS

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
# What is in the output of the cell that has this code.
EXPECTED = {
    "cluster.scheduler_address": ["fabric://"],
    "left, right = ": ["fabric://"],
    "total.compute()": ["285"],
    "(x + x.T)": ["32000000.0"],
    "len(frame)": ["604800"],
    "len(shuffled)": ["604800", "26"],
    "np.arange": ["49999995000000"],
    "workers.groupby": ["stream", "shm", "cma"],
    "> 80_000_000": ["True"],
    "client.dashboard_link": ["/fabric"],
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs; a cell that fails, or takes too long, fails here."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    folder = str(tmp_path_factory.mktemp("notebook"))
    runner = NotebookClient(notebook, timeout=PATIENCE_SECONDS, resources={"metadata": {}})
    return runner.execute(cwd=folder)


def texts(cell) -> str:
    """Everything that a cell has shown."""
    found = []
    for output in cell.outputs:
        assert output.output_type != "error"
        found.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(found)


@pytest.mark.parametrize("code", EXPECTED)
def test_cells_show_what_the_text_says(executed, code):
    (shown,) = (
        texts(cell) for cell in executed.cells if cell.cell_type == "code" and code in cell.source
    )
    written = "\n".join(cell.source for cell in executed.cells if cell.cell_type == "markdown")
    for text in EXPECTED[code]:
        assert text in shown and text in written


def test_the_doctor_has_no_error(executed):
    (shown,) = (
        texts(cell)
        for cell in executed.cells
        if '"doctor"' in cell.source and cell.cell_type == "code"
    )
    assert "shm" in shown and "Traceback" not in shown

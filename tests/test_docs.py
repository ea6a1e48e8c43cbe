"""What is made from code and figures is fresh; tests/docs runs what the pages show."""

import json
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MADE = runpy.run_path(str(DOCS / "generate.py"))["made"]()


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_what_is_generated_is_fresh(path):
    assert path.read_text() == MADE[path], "run: python docs/generate.py"


def test_the_tutorial_is_kept_without_outputs():
    cells = json.loads((DOCS / "tutorial.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_the_readme_can_be_read_in_a_terminal():
    lines = (DOCS.parent / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 120] == []

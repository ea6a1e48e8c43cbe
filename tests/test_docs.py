"""What is made from code and figures is fresh, and the programs of the pages run as saved files."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MADE = runpy.run_path(str(DOCS / "generate.py"))["made"]()


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_what_is_generated_is_fresh(path):
    assert path.read_text() == MADE[path], "run: python docs/generate.py"


BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PROGRAMS = {
    f"{page.relative_to(DOCS.parent)} {number}": block
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md")))
    for number, block in enumerate(BLOCK.findall(page.read_text()), 1)
    if "__main__" in block and "Fabric" not in block  # which needs a GPU to show anything
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_the_pages_run_as_saved_files(name, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[name])
    environment = {**os.environ, "DASK_DISTRIBUTED__DASHBOARD__LINK": ""}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_programs_that_start_workers_can_be_saved():
    """Without the guard, workers that import the file would start workers."""
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        for block in BLOCK.findall(page.read_text()):
            starts = "LocalCluster(" in block or "LocalFabricCluster(" in block
            assert not starts or "__main__" in block, (page, block)

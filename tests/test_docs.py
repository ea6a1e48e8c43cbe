"""Pages of the documentation that are made from the code are fresh."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_drawn_states_are_those_of_the_code():
    script = runpy.run_path(str(DOCS / "draw.py"))
    page = (DOCS / "wire-protocol.md").read_text()
    assert script["drawn"](page) == page, "run: python docs/draw.py"


def test_what_is_made_from_the_keys_of_the_configuration_is_fresh():
    for path, content in runpy.run_path(str(DOCS / "tables.py"))["made"]().items():
        assert path.read_text() == content, f"{path.name}: run: python docs/tables.py"

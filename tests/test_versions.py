"""The script behind ``make test-versions``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.versions import interpreter, lowest

PYPROJECT = """
[build-system]
requires = ["cython>=3.1"]
[project]
requires-python = ">=3.10"
dependencies = ["distributed>=2025.1.0", "numpy>=1.24"]
[project.optional-dependencies]
test = [
    "pytest-asyncio >= 1.4",
    "ruff",
]
"""


def test_the_lowest_of_what_a_project_needs():
    assert lowest(PYPROJECT) == ["distributed==2025.1.0", "numpy==1.24", "pytest-asyncio==1.4"]


def test_a_python_that_is_there_and_one_that_is_not():
    assert interpreter("9.9") is None
    version = "{}.{}".format(*sys.version_info[:2])
    found = interpreter(version)
    assert found is None or Path(found).exists()


def test_what_is_skipped_is_said():
    script = Path(__file__).with_name("versions.py")
    command = [sys.executable, str(script), "9.9:newest", "--", "-x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "9.9:newest: SKIPPED: there is no Python 9.9 on this host\n"
    assert done.returncode == 0

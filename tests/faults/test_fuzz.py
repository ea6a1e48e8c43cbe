"""Some thousand mutated streams; `make fuzz` has a million."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "fuzz.py"


@pytest.mark.resident
def test_mutated_streams_are_refused_in_order():
    done = subprocess.run(
        [sys.executable, PROGRAM, "--count", "12000", "--timeout", "100"],
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

"""Some faults while a cluster computes; `make chaos` injects them for minutes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SECONDS = 600  # it bounds its own waits


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.untraced
@pytest.mark.usefixtures("hosts")  # skips where there are no namespaces
def test_results_are_right_and_nothing_is_left_after_faults():
    command = [sys.executable, "-m", "tests.programs.chaos", "--time", "25s", "--seed", "1"]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.send_signal(signal.SIGINT)  # it ends what it started
    assert process.returncode == 0, output
    assert "nothing wrong, and nothing left" in output

"""The format of dask-fabric's log lines: the same as Dask's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, distributed
from distributed.comm.registry import get_backend
get_backend("fabric")
logger = logging.getLogger("dask_fabric.comm.listener")
logger.info("something"), logger.debug("a detail")
"""


def said(program: str = PROGRAM, **variables: str) -> str:
    command = [sys.executable, "-c", program]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stderr


def test_lines_have_time_logger_and_level_once():
    (line,) = said().splitlines()
    assert line[:2] == "20" and line.endswith(" - dask_fabric.comm.listener - INFO - something")


@pytest.mark.parametrize(("level", "lines"), [("error", 0), ("debug", 2)])
def test_the_level_of_the_configuration(level, lines):
    assert len(said(DASK_LOGGING__DASK_FABRIC=level).splitlines()) == lines


def test_logging_that_somebody_has_configured_stays():
    before = "import logging; logging.getLogger('dask_fabric').setLevel('ERROR')"
    assert said(f"{before}\n{PROGRAM}") == ""

"""Scripts like those in the documentation of HPC sites, which differ from them by the protocol."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from . import slurm
from .conftest import program
from .test_mpi import OPENMPI

EXAMPLES = Path(__file__).parent / "examples"
# What each prints, and how many bytes its processes must have received at the least.
LOCAL = {
    "delayed.py": (["344"], 1),
    "dataframe.py": (["15.0", "200000"], 1_000_000),
    "transpose.py": (["32000000", "(4000, 4000)"], 128_000_000),
    "many_delayed.py": (["32640"], 1),
    "scatter.py": (["12000000.0", "16000000"], 32_000_000),
}
MATRIX = ["8000000"], 32_000_000


@pytest.fixture
def run_example(folder, witnessed):
    """A function that runs a copy of an example, and checks output and traffic."""

    def run_example(name: str, *before: str, expected: tuple[list[str], int]) -> None:
        shutil.copy(EXAMPLES / name, folder.path)
        output = folder.run(*before, sys.executable, name).splitlines()
        lines, nbytes = expected
        assert [line for line in output if line in lines] == lines, output
        peers = [peer for process in witnessed() for peer in process]
        assert peers and all(peer["peer"].startswith("fabric://") for peer in peers), peers
        assert sum(peer["bytes_received"] for peer in peers) >= nbytes, peers

    return run_example


@pytest.mark.parametrize("name", LOCAL)
def test_on_one_host(name, run_example):
    if name == "dataframe.py":
        pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
    run_example(name, expected=LOCAL[name])


def test_a_job_of_mpi(folder, run_example):
    mpirun = program("mpirun", "openmpi-bin")
    pytest.importorskip("dask_mpi")
    folder.environment.update(OPENMPI)
    run_example("mpi.py", mpirun, "-n", "4", expected=MATRIX)


def test_a_job_of_slurm(folder, run_example, tmp_path_factory):
    pytest.importorskip("dask_jobqueue")
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        folder.environment.update(environment)
        run_example("slurm_runner.py", "srun", "--ntasks=4", expected=MATRIX)

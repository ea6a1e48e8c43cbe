"""Clusters whose processes are ranks of OpenMPI: a program, a function, and the command."""

from __future__ import annotations

import os

import pytest

from .conftest import assert_all_over_fabric, commands_of, program

PAGE = "howto/deploy/mpi.md"
# As root, and with more ranks than cores; communication of MPI itself stays within the host.
OPENMPI = {
    "MPI4PY_MPIABI": "openmpi",  # not the mpich whose wheel has libfabric
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_btl": "self,vader,tcp",
}
EXECUTE = """
from check import check
from dask_mpi import execute
from distributed import Client

def work():
    with Client() as client:
        client.wait_for_workers(2)
        check(client)

if __name__ == "__main__":
    execute(work, protocol="fabric")
"""


@pytest.fixture(autouse=True)
def ranks(folder):
    pytest.importorskip("dask_mpi")
    # The wheel mpich, whose libfabric other tests use, has an mpirun too.
    bin_folder = folder.path / "bin"
    bin_folder.mkdir()
    (bin_folder / "mpirun").symlink_to(program("mpirun.openmpi", "openmpi-bin"))
    path = f"{bin_folder}{os.pathsep}{folder.environment['PATH']}"
    folder.environment.update(OPENMPI, PATH=path)
    folder.save(PAGE)


@pytest.mark.parametrize("has_key", [False, True])
def test_a_program_that_initializes(folder, has_key):
    if has_key:
        folder.make_key()
    start, *_ = commands_of(PAGE)
    assert_all_over_fabric(folder.run("sh", "-c", start), workers=2)


def test_a_program_that_executes_a_function(folder):
    (folder.path / "program.py").write_text(EXECUTE)
    offload = {"DASK_DISTRIBUTED__COMM__OFFLOAD": "false"}
    output = folder.run("mpirun", "-n", "4", "python", "program.py", **offload)
    assert_all_over_fabric(output, workers=2)


def test_the_command(folder):
    _, start, check = commands_of(PAGE)
    with folder.start("sh", "-c", f"exec {start.removesuffix('&')}"):
        assert_all_over_fabric(folder.run("sh", "-c", check), workers=2)

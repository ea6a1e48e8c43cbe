"""Job queues other than Slurm: a real SGE, and the job scripts for systems that cannot be had."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ..conftest import unsharing
from .conftest import assert_all_over_fabric, files_of, program

GRIDENGINE = Path(__file__).parent / "gridengine.sh"
NAMESPACES = ("--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
PAGE = "howto/deploy/job-queues.md"
OTHERS = {
    "PBSCluster": {"walltime": "00:10:00"},
    "LSFCluster": {"walltime": "00:10"},
    "OARCluster": {"walltime": "00:10:00"},
    "HTCondorCluster": {"disk": "1GB"},
}
JOB_SCRIPT = """
import dask_jobqueue

if __name__ == "__main__":
    cluster_class = getattr(dask_jobqueue, {name!r})
    options = {{"cores": 4, "processes": 2, "memory": "8GB", **{options}}}
    with cluster_class(protocol="fabric", **options) as cluster:
        print(cluster.job_script())
"""


@pytest.fixture(autouse=True)
def needs_jobqueue():
    pytest.importorskip("dask_jobqueue")


@pytest.mark.parametrize("has_key", [False, True])
def test_sge(folder, has_key):
    program("sge_qmaster", "gridengine-master")
    program("sge_execd", "gridengine-exec")
    program("qsub", "gridengine-client")
    namespaces = unsharing(*NAMESPACES)
    folder.save(PAGE)
    server = folder.path / "sge"
    server.mkdir()
    if has_key:  # in the home, which the hosts share: the jobs find it there
        folder.make_key()
    output = folder.run(*namespaces, "sh", GRIDENGINE, server, sys.executable, "cluster.py")
    assert_all_over_fabric(output, workers=4)


@pytest.mark.parametrize("name", OTHERS)
def test_the_job_script_names_the_scheme(name, folder):
    (folder.path / "show.py").write_text(JOB_SCRIPT.format(name=name, options=OTHERS[name]))
    _assert_names_the_scheme(folder.run(sys.executable, "show.py"))


def test_the_program_for_pbs_shows_the_job_script(folder):
    """Up to the line that would submit it."""
    before, _ = files_of("howto/deploy/pbs.md")["cluster.py"].split("        cluster.scale")
    (folder.path / "cluster.py").write_text(before)
    script = folder.run(sys.executable, "cluster.py")
    assert "#PBS -l walltime=00:10:00" in script
    _assert_names_the_scheme(script)


def _assert_names_the_scheme(script: str) -> None:
    command = next(line for line in script.splitlines() if "dask_worker" in line)
    assert re.search(r"dask_worker fabric://[\d.]+:\d+ ", command), script
    assert "--protocol fabric" in command, script

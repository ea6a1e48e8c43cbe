"""Slurm: a cluster whose workers are jobs, a program that is a job of several tasks, and a job."""

from __future__ import annotations

import sys

import pytest

from . import slurm
from .conftest import assert_all_over_fabric, files_of

PAGE = "howto/deploy/slurm.md"
CHECK = """
from check import check
check(client)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def site(folder, environment):
    folder.environment.update(environment)
    folder.save(PAGE)
    return folder


@pytest.fixture(autouse=True)
def needs_jobqueue():
    pytest.importorskip("dask_jobqueue")


def test_a_cluster_whose_workers_are_jobs(site):
    assert_all_over_fabric(site.run(sys.executable, "cluster.py"), workers=4)


def test_a_program_that_is_one_job(site):
    site.run("sbatch", "--wait", "--output=job.out", "runner.sh")
    output = (site.path / "job.out").read_text()
    assert_all_over_fabric(output, workers=2)


@pytest.mark.parametrize("method", ["key", "munge"])
def test_a_job_that_starts_everything(site, method):
    """With MUNGE, its processes know each other by the daemon that Slurm has anyway."""
    site.environment["DASK_FABRIC__AUTH__METHOD"] = method
    site.environment["DASK_FABRIC__AUTH__REQUIRE"] = "true" if method == "munge" else "false"
    site.run("sbatch", "--wait", "--output=job.out", "job.sh")
    assert_all_over_fabric((site.path / "job.out").read_text(), workers=4)


def test_the_job_of_the_quickstart(site):
    files = files_of("quickstart.md")
    (site.path / "job.sh").write_text(files["job.sh"])
    (site.path / "program.py").write_text(files["program.py"] + CHECK)
    site.run("sbatch", "--wait", "--output=job.out", "job.sh")
    output = (site.path / "job.out").read_text()
    workers = output.count("\nworker ")
    assert workers >= 4  # several of each node, with --nworkers auto
    assert_all_over_fabric(output, workers)

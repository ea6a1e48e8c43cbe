"""Paths are found by entry points, also those of third parties; a broken one does no harm."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dask_fabric import config, providers
from dask_fabric.cli.doctor.report import Facts
from dask_fabric.config.table import sections
from dask_fabric.paths.provider import Provider
from dask_fabric.wire.hello import Hello

MODULE = Path(__file__).parent / "conformance" / "file_path.py"
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "new-path.md"


@pytest.fixture
def installed(tmp_path):
    """The environment of a process that has the package of a third party with a path."""
    folder = tmp_path / "site"
    info = folder / "toy_path-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "toy_path.py").write_text(MODULE.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-path\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dask_fabric.paths]\nfile = toy_path:PROVIDER\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(program: str, environment: dict, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


CLUSTER = """
import json
import numpy as np
from dask_fabric import statistics
from distributed import Client, LocalCluster

def used(dask_worker):
    return [row for row in statistics()["peers"] if row["path"] == "file"]

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric://",
                      dashboard_address=None) as cluster, Client(cluster) as client:
        one, other = list(client.scheduler_info()["workers"])
        frame = client.submit(np.ones, 300_000, workers=[one])
        assert client.submit(np.sum, frame, workers=[other]).result() == 300_000
        print(json.dumps(client.run(used)))
"""


def test_a_cluster_uses_the_path_of_another_package(installed, tmp_path):
    program = tmp_path / "cluster.py"
    program.write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, program], env=installed, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [row for rows in json.loads(done.stdout).values() for row in rows]
    assert sum(row["frames_sent"] for row in rows) == 1
    assert sum(row["frames_received"] for row in rows) == 1
    assert not any(row["fallbacks_received"] for row in rows)


@pytest.mark.slow
@pytest.mark.untraced
def test_the_doctor_and_the_configuration_know_it(installed):
    doctor = [sys.executable, "-m", "dask", "fabric", "doctor", "--json", "--require", "file"]
    done = subprocess.run(doctor, env=installed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {one["path"]: one for one in json.loads(done.stdout)["paths"]}
    assert found["file"]["works"] and found["cma"]["instead"] == "file"
    off = {**installed, "DASK_FABRIC__FILE__ENABLED": "false"}
    done = subprocess.run(doctor, env=off, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "fabric.file.enabled is false" in done.stderr


PAIR = """
import asyncio, json, subprocess, sys
from distributed.comm import connect, listen
async def main():
    async with listen("fabric://127.0.0.1", lambda comm: comm.read()) as listener:
        code = ("import asyncio, sys; from distributed.comm import connect\\n"
                "async def main():\\n"
                "    comm = await connect(sys.argv[1])\\n"
                "    print(comm.paths['host'], comm.refused_paths.get('file'))\\n"
                "    comm.abort()\\n"
                "asyncio.run(main())")
        environment = json.loads(sys.argv[1])
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, listener.contact_address, env=environment,
            stdout=subprocess.PIPE)
        print((await child.communicate())[0].decode().strip())
asyncio.run(main())
"""


@pytest.mark.slow
def test_where_only_one_side_has_it_another_path_is_taken(installed):
    plain = {name: value for name, value in installed.items() if name != "PYTHONPATH"}
    assert run(PAIR, installed, json.dumps(plain)).strip() == "cma None"
    told = run(PAIR, plain, json.dumps(installed)).strip()
    assert told == "cma server: its version does not know this path"
    assert run(PAIR, installed, json.dumps(installed)).strip() == "file None"


# ---------------------------------------------------------------- what is wrong with one


@pytest.fixture
def points(monkeypatch):
    """Entry points beside those that are installed, until the end of the test."""
    real = providers.entry_points
    caches = (providers.found, providers.names, providers.by_name)
    more = []
    monkeypatch.setattr(providers, "entry_points", lambda group: [*real(group=group), *more])

    def add(name, value):
        more.append(EntryPoint(name, value, providers.GROUP))
        for cache in caches:
            cache.cache_clear()

    yield add
    for cache in caches:
        cache.cache_clear()


class Named(Provider):
    name = "odd"


class Upper(Provider):
    name = "Upper"


class Taken(Provider):
    name = "limits"


class Twice(Provider):
    name = "cma"


ODD, UPPER, TAKEN, TWICE = Named(), Upper(), Taken(), Twice()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("gone", "no_such_module:PROVIDER", "No module named"),
        ("gone", "dask_fabric.errors:PROVIDER", "PROVIDER"),
        ("even", f"{__name__}:ODD", "its name is 'odd'"),
        ("Upper", f"{__name__}:UPPER", "lower-case"),
        ("limits", f"{__name__}:TAKEN", "is reserved"),
        ("cma", f"{__name__}:TWICE", "another package has a path of this name"),
    ],
)
def test_one_that_cannot_be_used_is_left_out_and_named(points, caplog, name, value, reason):
    caplog.set_level(logging.WARNING)
    points(name, value)
    assert [one.name for one in providers.found()] == ["shm", "cma", "ucx", "ofi", "lanes"]
    (message,) = caplog.messages
    assert name in message and value in message and reason in message


def test_one_more_is_found_by_its_rank(points):
    points("odd", f"{__name__}:ODD")
    assert [one.name for one in providers.found()] == ["shm", "cma", "ucx", "ofi", "odd", "lanes"]
    assert set(providers.names()) == {"shm", "cma", "ucx", "ofi", "odd", "lanes"}


def test_no_path_has_a_name_that_means_something_else():
    fields = {field.name for of in (Hello, Facts) for field in dataclasses.fields(of)}
    own = sections().keys() - set(providers.names())
    assert (fields | own) - {"limits", "details", "unix-sockets"} <= providers.RESERVED
    assert not providers.RESERVED & set(providers.names())


def test_the_page_shows_the_path_of_these_tests():
    assert MODULE.read_text() in PAGE.read_text()


def test_all_paths_are_found_also_before_the_configuration_is_read():
    program = "from dask_fabric import providers; print(*(one.name for one in providers.found()))"
    assert run(program, dict(os.environ)).split() == ["shm", "cma", "ucx", "ofi", "lanes"]


def test_every_path_has_its_settings():
    assert set(config.load().paths._fields) == {one.name for one in providers.found()}


def test_what_makes_comms_has_imported_all_that_paths_need():
    """Later it may not be there for this user, or a slow file system holds up the event loop."""
    program = """
import sys
import dask_fabric.comm.backend
before = set(sys.modules)
import asyncio
from distributed.comm import connect, listen
async def main():
    async with listen("fabric://127.0.0.1", lambda comm: comm.read()) as listener:
        comm = await connect(listener.contact_address)
        assert comm.paths["host"] == "cma"
        comm.abort()
asyncio.run(main())
print(sorted(name for name in set(sys.modules) - before if name.startswith("dask_fabric.paths")))
"""
    assert run(program, dict(os.environ)).strip() == "[]"

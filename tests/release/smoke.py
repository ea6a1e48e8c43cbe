"""Try an installed wheel, in an environment that has only what the wheel depends on.

The argument is the expected version, by default whatever is installed. Nothing here needs pytest.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import dask_fabric

LIMIT_SECONDS = 120
GROUPS = {"distributed.comm.backends": 5, "dask_fabric.paths": 5, "dask_cli": 1}
# These need an extra: bokeh or pandas.
OPTIONAL = {
    "dask_fabric.bench.page.page",
    "dask_fabric.bench.page.plots",
    "dask_fabric.bench.work.frames",
    "dask_fabric.telemetry.dashboard.page",
}


def check(is_good: bool, what: object) -> None:
    """Like assert, which ``python -O`` leaves out."""
    if not is_good:
        sys.exit(f"FAILED: {what}")


def modules() -> None:
    found = [m.name for m in pkgutil.walk_packages(dask_fabric.__path__, "dask_fabric.")]
    for name in found:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            check(name in OPTIONAL, f"{name} cannot be imported: {error}")
    print(f"{len(found)} modules can be imported")


def points() -> None:
    for group, count in GROUPS.items():
        ours = [one for one in entry_points(group=group) if one.value.startswith("dask_fabric")]
        check(len(ours) == count, f"{len(ours)} entry points in {group}, not {count}")
        for one in ours:
            one.load()
    print("entry points are found, and what they name exists")


def commands(expected: str) -> None:
    def dask(*words: str) -> str:
        command = [Path(sys.executable).with_name("dask"), "fabric", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        check(done.returncode == 0, f"{command}: {done.stderr}")
        return done.stdout

    check(dask("--version").strip().endswith(expected), "dask fabric --version")
    report = json.loads(dask("doctor", "--json", "--require", "stream", "--require", "unix"))
    check(report["host"]["packages"]["dask-fabric"] == expected, "dask fabric doctor")
    print("dask fabric doctor reports, and finds that the stream and Unix sockets work")


def cluster() -> None:
    with (
        LocalCluster(2, protocol="fabric", dashboard_address=":0", threads_per_worker=1) as here,
        Client(here, timeout=LIMIT_SECONDS) as client,
    ):
        addresses = client.scheduler_info()["workers"]
        check(all(a.startswith("fabric://") for a in addresses), list(addresses))
        there = da.arange(4_000_000, chunks=500_000).reshape(2000, 2000).persist()
        result = client.compute(there + there.T).result(timeout=LIMIT_SECONDS)
        x = np.arange(4_000_000).reshape(2000, 2000)
        check(bool((result == x + x.T).all()), "x + x.T on a cluster")
        moved = client.run(lambda: dask_fabric.statistics()["closed"])
        check(len(moved) == 2, "statistics of both workers")
    print("a cluster computes x + x.T over fabric://")


if __name__ == "__main__":
    expected = sys.argv[1] if len(sys.argv) > 1 else version("dask-fabric")
    found = (dask_fabric.__version__, version("dask-fabric"))
    check(found == (expected, expected), f"version {found}, expected {expected}")
    modules()
    points()
    commands(expected)
    cluster()

"""Scheduler and workers by their commands: on two hosts, and with a client that only knows tcp."""

from __future__ import annotations

import pytest

from ..conftest import NETWORKS
from .conftest import assert_all_over_fabric, commands_of

PAGE = "howto/deploy/command-line.md"
# As on a host without dask-fabric, whose import would fail.
TCP_CLIENT = """
import sys
sys.modules["dask_fabric"] = None
import dask.array as da
import numpy as np
import pytest
from distributed import Client

with pytest.raises(ImportError):
    Client(sys.argv[1].replace("tcp", "fabric"), timeout=60)
with Client(sys.argv[1], timeout=60) as client:
    client.wait_for_workers(1, timeout=60)
    assert client.submit(np.ones, 10_000_000).result().sum() == 10_000_000
    x = da.random.random((2000, 2000), chunks=(500, 500))
    y = (x + x.T).compute()
    assert np.array_equal(y, y.T)
    print(client.scheduler.address)
"""


@pytest.mark.netns
def test_two_hosts_with_an_interface(folder, hosts):
    address = f"{NETWORKS[1]}.1"
    commands = [
        command.replace("ib0", "eth1").replace("10.0.0.1", address)
        for command in commands_of(PAGE)[:3]
    ]
    here, there = (("ip", "netns", "exec", name, "sh", "-c") for name in hosts)
    scheduler, worker, check = (f"exec {command}" for command in commands)
    with folder.start(*here, scheduler), folder.start(*there, worker):
        output = folder.run(*here, check)
    assert_all_over_fabric(output, workers=1)
    assert f"scheduler fabric://{address}:8786" in output
    assert f"worker fabric://{NETWORKS[1]}.2:" in output


def test_a_scheduler_that_stays_on_tcp(folder, free_port):
    port = str(free_port())
    scheduler, worker = commands_of(PAGE)[3:5]
    worker = worker.replace("10.0.0.1", "127.0.0.1").replace("8786", port)
    start = folder.start("sh", "-c", f"exec {scheduler} --port {port} --host 127.0.0.1")
    with start, folder.start("sh", "-c", f"exec {worker}"):
        output = folder.run("python", "check.py", f"tcp://127.0.0.1:{port}", "1")
    assert f"scheduler tcp://127.0.0.1:{port}" in output
    assert "worker fabric://127.0.0.1:" in output


def test_a_client_that_only_knows_tcp(folder, free_port):
    (folder.path / "tcp_client.py").write_text(TCP_CLIENT)
    fabric, tcp = (str(free_port()) for _ in range(2))
    scheduler, worker = (
        "exec "
        + command.replace("10.0.0.1", "127.0.0.1").replace("8786", fabric).replace("8787", tcp)
        for command in commands_of(PAGE)[5:]
    )
    with folder.start("sh", "-c", scheduler), folder.start("sh", "-c", worker):
        address = f"tcp://127.0.0.1:{tcp}"
        assert address in folder.run("python", "tcp_client.py", address)
        output = folder.run("python", "check.py", f"fabric://127.0.0.1:{fabric}", "1")
    assert_all_over_fabric(output, workers=1)

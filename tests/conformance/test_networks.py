"""Two network namespaces as hosts: which address each process advertises."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Of the networks of `hosts`. The scheduler is on the second.
WRONG, RIGHT = "10.77.0", "10.78.0"

pytestmark = pytest.mark.clusters

CLIENT = """
import sys
from distributed import Client
with Client(sys.argv[1], timeout=30) as client:
    client.wait_for_workers(2, timeout=30)
    info = client.scheduler_info(n_workers=-1)["workers"]
    for address, worker in info.items():
        result = client.submit(sum, range(10), workers=[address], pure=False).result(timeout=30)
        print(address, worker["nanny"], result)
"""


@pytest.mark.netns
def test_a_bare_worker_advertises_the_way_to_its_scheduler(scheme, security, hosts, run):
    if security:
        pytest.skip("the address does not depend on TLS")
    here, there = (("ip", "netns", "exec", name) for name in hosts)
    address = f"{scheme}://{RIGHT}.1:8786"
    options = ["--no-dashboard", "--protocol", scheme]
    run("scheduler", *options, "--host", f"{RIGHT}.1", prefix=here)
    run("worker", address, *options, "--nthreads", "1", prefix=there)
    run("worker", address, *options, "--nthreads", "1", "--no-nanny", prefix=there)
    output = subprocess.run(
        [*here, sys.executable, "-c", CLIENT, address],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split("\n")[:-1]  # fmt: skip
    workers = [line.split() for line in output]
    assert len(workers) == 2
    for worker, nanny, result in workers:
        assert worker.startswith(f"{scheme}://{RIGHT}.2:")
        assert result == "45"
        if scheme not in ("tcp", "tls"):  # distributed does not pass the host on to a nanny
            assert nanny == "None" or nanny.startswith(f"{scheme}://{RIGHT}.2:")
    assert len([nanny for _, nanny, _ in workers if nanny != "None"]) == 1


@pytest.mark.netns
@pytest.mark.own
def test_a_bare_scheduler_does_not_advertise_loopback(scheme, security, hosts):
    if security:
        pytest.skip("the address does not depend on TLS")
    code = f"""
import asyncio
from distributed import Scheduler
async def main():
    async with Scheduler(protocol={scheme!r}, port=0, dashboard_address=None) as scheduler:
        print(scheduler.address)
asyncio.run(main())
"""
    output = subprocess.run(
        ["ip", "netns", "exec", hosts[0], sys.executable, "-c", code],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    assert output.startswith((f"{scheme}://{WRONG}.1:", f"{scheme}://{RIGHT}.1:"))

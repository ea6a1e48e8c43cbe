"""If a listener is bound to one address, UCX's TCP listens on that interface only."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from benchmarks.networks import ip, namespaces

from ..conftest import ucx_params, unsharing

LIBRARIES = ucx_params()  # now: a process that has loaded one finds no other

LISTEN = """
import asyncio, json, os, sys
import psutil
from dask_fabric.paths.ucx import worker as ucx_worker
from distributed.comm import listen
async def main(scheme, host):
    async with listen(f"{scheme}://{host}", print):
        assert ucx_worker.is_running()
        assert not [name for name in os.environ if name.startswith("UCX_")]
        found = psutil.Process().net_connections("tcp")
        print(json.dumps(sorted({c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN})))
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


def listens_on(library, scheme, host, prefix=(), **options) -> list[str]:
    """Give the addresses at which a process that listens can be reached by TCP."""
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("UCX_")},
        "DASK_FABRIC__UCX__ENABLED": "true",
        "DASK_FABRIC__UCX__LIBRARY": library.path,
        **{f"DASK_FABRIC__UCX__OPTIONS__{name}": value for name, value in options.items()},
    }
    command = [*prefix, sys.executable, "-c", LISTEN, scheme, host]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def two_networks():
    """What starts a command on a host with two networks, 10.77.0.1 and 10.78.0.1."""
    unsharing("-n")
    with namespaces(1) as (name,):
        for number in (7, 8):
            device = f"net{number}"
            ip("-n", name, "link", "add", device, "type", "veth", "peer", "name", f"{device}x")
            ip("-n", name, "address", "add", f"10.7{number}.0.1/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", f"{device}x", "up")
        yield ["ip", "netns", "exec", name]


@pytest.mark.parametrize("scheme", ["fabric", "fabric+ucx"])
def test_on_loopback(library, scheme):
    assert listens_on(library, scheme, "127.0.0.1") == ["127.0.0.1"]


@pytest.mark.netns
def test_on_one_of_two_networks(library, two_networks):
    assert listens_on(library, "fabric+ucx", "10.77.0.1", two_networks) == ["10.77.0.1"]
    everywhere = listens_on(library, "fabric+ucx", "0.0.0.0", two_networks)
    assert {"0.0.0.0", "10.77.0.1", "10.78.0.1"} <= set(everywhere)


@pytest.mark.netns
def test_the_users_own_setting_wins(library, two_networks):
    own = listens_on(library, "fabric+ucx", "10.77.0.1", two_networks, NET_DEVICES="net8")
    assert own == ["10.77.0.1", "10.78.0.1"]

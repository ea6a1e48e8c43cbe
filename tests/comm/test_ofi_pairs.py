"""Which pairs of processes with a real libfabric use it, and the reasons of the others.

Both are processes of their own: a process runs one provider.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ..conftest import NETWORKS, ofi_libraries, unsharing

PATIENCE_SECONDS = 60

SIDE = """
import asyncio, json, signal, sys
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
SIZES = 65_536, 131_072, 1_000_001, 4 << 20, 20_000_000
def facts(comm):
    return comm.paths["host"], comm.refused_paths.get("ofi", ""), comm.statistics()["sends_by"]
async def answer(comm):
    for _ in SIZES:
        data = (await comm.read())["x"]
        await comm.write({"x": to_serialize(data + 1)})
    await comm.write(facts(comm))
    await comm.read()
async def main(scheme, host, address=None):
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    if address is None:
        async with listen(f"{scheme}://{host}", answer) as listener:
            print(listener.contact_address, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        return
    try:
        comm = await connect(address, timeout=20)
    except OSError as exc:
        print(json.dumps([str(exc)]))
        return
    for nbytes in SIZES:
        sent = np.random.default_rng(nbytes).integers(0, 255, nbytes, "u1")
        await comm.write({"x": to_serialize(sent)})
        assert ((await comm.read())["x"] == sent + 1).all()
    print(json.dumps([*facts(comm), *(await comm.read())]))
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    await comm.write("done")
    await comm.close()
asyncio.run(main(*sys.argv[1:]))
"""


def offers() -> list:
    """Every provider of every libfabric here that is tried; all but the newest's tcp are slow."""
    wanted = ("tcp", "shm", "tcp;ofi_rxm", "net")
    found = [
        (one, name) for name in wanted for one in ofi_libraries() if name in one.providers
    ]  # fmt: skip
    return [
        pytest.param(
            one, name, id=f"{name}-{'.'.join(map(str, one.version))}",
            marks=() if name in ("tcp", "shm") else pytest.mark.slow,
        )
        for one, name in found
    ] or [pytest.param(None, "", marks=pytest.mark.skip("no libfabric on this host"))]  # fmt: skip


def variables(library, provider) -> dict[str, str]:
    return {
        **os.environ,
        "DASK_FABRIC__OFI__LIBRARY": library.path,
        "DASK_FABRIC__OFI__PROVIDER": provider,
    }


def talk(server, client, scheme="fabric+ofi", prefixes=((), ()), host="127.0.0.1"):
    command = [sys.executable, "-W", "error", "-c", SIDE, scheme, host]
    serve, connect = ([*prefix, *command] for prefix in prefixes)
    pipe = subprocess.PIPE
    with subprocess.Popen(serve, stdin=pipe, stdout=pipe, text=True, env=server) as serving:
        try:
            address = serving.stdout.readline().strip()
            done = subprocess.run(
                [*connect, address], env=client, capture_output=True, text=True,
                timeout=PATIENCE_SECONDS,
            )  # fmt: skip
        finally:
            serving.stdin.close()
            serving.wait(PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("library", "provider"), offers())
def test_two_processes_with_the_same(library, provider):
    environment = variables(library, provider)
    assert talk(environment, environment) == ["ofi", "", "ofi"] * 2


def first(provider):
    found = [one for one in ofi_libraries() if provider in one.providers]
    if not found:
        pytest.skip(f"no libfabric on this host offers {provider}")
    return found[0]


def test_different_providers_are_refused():
    told = talk(variables(first("tcp"), "tcp"), variables(first("shm"), "shm"))
    assert len(told) == 1 and "both must use the same provider" in told[0]


def test_on_its_own_host_cma_comes_first():
    environment = variables(first("tcp"), "tcp")
    assert talk(environment, environment, "fabric")[2] != "ofi"


def test_without_a_device_the_scheme_says_what_to_set():
    environment = {**os.environ, "DASK_FABRIC__OFI__ENABLED": "auto"}
    code = "import asyncio; from distributed.comm import connect\n" \
        "asyncio.run(connect('fabric+ofi://127.0.0.1:1'))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert "set fabric.ofi.provider" in done.stderr


def test_processes_of_two_pid_namespaces():
    """Nothing but the network joins them."""
    environment = variables(first("tcp"), "tcp")
    prefixes = [unsharing("--pid", "--fork", "--mount-proc")] * 2
    assert talk(environment, environment, prefixes=prefixes) == ["ofi", "", "ofi"] * 2


@pytest.mark.netns
def test_two_hosts(hosts):
    environment = variables(first("tcp"), "tcp")
    prefixes = [("ip", "netns", "exec", name) for name in hosts]
    told = talk(environment, environment, prefixes=prefixes, host=f"{NETWORKS[0]}.1")
    assert told == ["ofi", "", "ofi"] * 2


@pytest.mark.netns
def test_two_hosts_and_a_listener_on_every_interface(hosts):
    environment = variables(first("tcp"), "tcp")
    prefixes = [("ip", "netns", "exec", name) for name in hosts]
    told = talk(environment, environment, prefixes=prefixes, host="")
    assert told == ["ofi", "", "ofi"] * 2

"""Which pairs of processes with a real UCX use it, and the reasons of the others.

Both are processes of their own: this one may have loaded another UCX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ucx_params, unsharing

LIBRARIES = ucx_params()  # now: a process that has loaded one finds no other
NOBODY = 65534
PATIENCE_SECONDS = 30

SIDE = """
import asyncio, json, os, sys
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
def facts(comm):
    return comm.paths["host"], comm.refused_paths.get("ucx", ""), comm.statistics()["sends_by"]
async def answer(comm):
    data = (await comm.read())["x"]
    await comm.write({"x": to_serialize(data + 1), "facts": facts(comm)})
    await comm.read()
async def become(uid):    # who cannot read the modules and Python afterwards, maybe
    from dask_fabric.paths.ucx.library import choose
    async with listen("fabric+tcp://127.0.0.1", answer) as listener:
        await (await connect(listener.contact_address)).close()
    choose(os.environ["DASK_FABRIC__UCX__LIBRARY"])
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
async def main(scheme, address=None):
    if address is None and "TEST_UID" in os.environ:
        await become(int(os.environ["TEST_UID"]))
    if address is None:
        async with listen(f"{scheme}://127.0.0.1", answer) as listener:
            print(listener.contact_address, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        return
    try:
        comm = await connect(address, timeout=10)
    except OSError as exc:
        print(json.dumps([str(exc)]))
        return
    await comm.write({"x": to_serialize(np.full(5_000_000, 3, "u1"))})
    reply = await comm.read()
    assert (reply["x"] == 4).all()
    print(json.dumps([*facts(comm), *reply["facts"]]))
    await comm.write("done")
    await comm.close()
asyncio.run(main(*sys.argv[1:]))
"""


def command(*arguments, prefix=()):
    return [*prefix, sys.executable, "-c", SIDE, *arguments]


def environment(library, transports):
    """Variables for a process with neither `shm` nor `cma`, so that `ucx` comes first."""
    return {
        **os.environ,
        "DASK_FABRIC__SHM__ENABLED": "false",
        "DASK_FABRIC__CMA__ENABLED": "false",
        "DASK_FABRIC__UCX__ENABLED": "true",
        "DASK_FABRIC__UCX__LIBRARY": library.path,
        "UCX_TLS": transports,
    }


def meet(library, client="all", server="all", scheme="fabric", prefix=(), **variables):
    """Have two processes exchange an array; give both reports, or the client's error."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command(scheme, prefix=prefix), env=environment(library, server) | variables, **pipes
    ) as listening:
        try:
            address = listening.stdout.readline().strip()
            done = subprocess.run(
                command(scheme, address),
                env=environment(library, client),
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
            )
            assert done.returncode == 0, done.stderr
        finally:
            listening.communicate()
    assert "broken" not in done.stderr and "Fatal" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


@pytest.mark.parametrize(
    "transports", ["all", *(pytest.param(one, marks=pytest.mark.slow) for one in ("posix", "sysv"))]
)
def test_two_processes_share_memory(library, transports):
    assert meet(library, transports, transports) == ["ucx", "", "ucx"] * 2


@pytest.mark.netns
@pytest.mark.parametrize(
    ("options", "transports", "reason"),
    [
        (("-p", "-f"), "all", "fails between different pid namespaces"),
        (("-p", "-f"), "posix,tcp", "fails between different pid namespaces"),
        (("-p", "-f"), "sysv,tcp", "fails between different pid namespaces"),
        (("-i",), "all", "no memory between different IPC namespaces"),
        (("-p", "-i", "-f"), "all", "no memory between different IPC namespaces"),
    ],
)
@pytest.mark.slow
def test_containers_of_a_host(library, options, transports, reason):
    found = meet(library, transports, transports, prefix=unsharing(*options))
    assert found == ["stream", found[1], "stream"] * 2
    assert reason in found[1]


@pytest.mark.slow
def test_two_users(library):
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    if not all(folder.stat().st_mode & 0o001 for folder in Path(library.path).parents):
        pytest.skip("another user cannot read the library")
    found = meet(library, TEST_UID=str(NOBODY))
    assert found == ["stream", found[1], "stream"] * 2
    assert "fails between different users" in found[1]


@pytest.mark.netns
@pytest.mark.slow
def test_containers_that_insist_on_it(library):
    pid = unsharing("-p", "-f")
    assert "(UCX_TLS=^sm)" in meet(library, scheme="fabric+ucx", prefix=pid)[0]
    assert meet(library, "^sm", "^sm", "fabric+ucx", pid) == ["ucx", "", "ucx"] * 2
    ipc = unsharing("-i")
    assert meet(library, scheme="fabric+ucx", prefix=ipc) == ["ucx", "", "ucx"] * 2


@pytest.mark.slow
def test_transports_with_nothing_in_common(library):
    reason = "UCX has neither shared memory nor RDMA in common between the two"
    found = meet(library, "posix", "tcp")
    assert found == ["stream", f"{reason}, and the stream is as good as its TCP", "stream"] * 2
    (error,) = meet(library, "posix", "tcp", "fabric+ucx")
    assert f"fabric+ucx:// cannot be used between the two processes: {reason}, nor TCP" in error

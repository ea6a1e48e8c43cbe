"""Which pairs of processes read each other's memory, and the reasons of the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys

import dask
import numpy as np
import pytest
import pytest_asyncio
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric.comm import runtime
from dask_fabric.paths.cma import process as cma
from dask_fabric.paths.cma import provider

from ..conftest import unsharing

NBYTES = 5_000_000
NOBODY = 65534
PATIENCE_SECONDS = 30

PEER = """
import asyncio, json, os, sys
import dask
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
order = json.loads(sys.argv[1])
dask.config.set(order["config"])
async def warm():
    async def handle(comm):
        await comm.write(await comm.read())
        await comm.close()
    async with listen("fabric://127.0.0.1", handle) as listener:
        comm = await connect(listener.contact_address)
        await comm.write({"x": to_serialize(np.full(NBYTES, 3, "u1"))})
        await comm.read()
        await comm.close()
if order["uid"]:    # who cannot read the modules afterwards, maybe
    asyncio.run(warm())
    os.setgroups([])
    os.setgid(order["uid"])
    os.setuid(order["uid"])
def facts(comm):
    return comm.paths["host"], comm.refused_paths.get("cma", ""), comm.control_stream
async def main():
    comm = await connect(order["address"])
    await comm.write({"x": to_serialize(np.full(NBYTES, 3, "u1"))})
    data = (await comm.read())["x"]
    assert (data == 4).all() and data.nbytes == NBYTES
    await comm.write(json.dumps(facts(comm)))
    await comm.close()
asyncio.run(main())
""".replace("NBYTES", str(NBYTES))


@pytest_asyncio.fixture
async def meet():
    """A function that has a new process connect and exchange arrays; gives both reports."""

    async def meet(prefix=(), uid=0, here=None, there=None, scheme="fabric"):
        met = asyncio.get_running_loop().create_future()

        async def handle(comm):
            try:
                met.set_result(await exchange(comm))
            except BaseException as exc:
                met.set_exception(exc)

        with dask.config.set(here or {}):
            async with listen(f"{scheme}://127.0.0.1", handle) as listener:
                address = listener.contact_address.replace(scheme, "fabric", 1)
                order = {"address": address, "config": there or {}, "uid": uid}
                await run([*prefix, sys.executable, "-c", PEER, json.dumps(order)])
                return await wait_for(met, PATIENCE_SECONDS)

    return meet


async def exchange(comm):
    data = (await comm.read())["x"]
    assert (data == 3).all() and data.nbytes == NBYTES
    await comm.write({"x": to_serialize(np.full(NBYTES, 4, "u1"))})
    theirs = json.loads(await comm.read())
    await comm.close()
    return facts(comm), tuple(theirs)


def facts(comm):
    return comm.paths["host"], comm.refused_paths.get("cma", ""), comm.control_stream


async def run(command):
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, errors = await wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 0, errors.decode()


TCP = {"fabric.unix-sockets": False}
OFF = {"fabric.cma.enabled": False}


@pytest.mark.parametrize(("config", "stream"), [({}, "unix"), (TCP, "tcp")])
async def test_two_processes_of_one_user(meet, config, stream):
    mine, theirs = await meet(here=config)
    assert mine == theirs == ("cma", "", stream)


@contextlib.asynccontextmanager
async def proxy(host, port):
    """A port that is forwarded to another one, as by ``ssh -L``."""
    tasks = []

    async def copy(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def handle(reader, writer):
        onward_reader, onward_writer = await asyncio.open_connection(host, port)
        tasks.extend(
            asyncio.ensure_future(copy(*ends))
            for ends in ((reader, onward_writer), (onward_reader, writer))
        )

    async with await asyncio.start_server(handle, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*tasks)


async def test_a_proxy_is_in_between():
    """It may forward the sender's end late, so no frame could be known to be valid."""
    accepted = asyncio.Queue()
    async with listen("fabric://127.0.0.1", accepted.put) as listener:
        host, port = listener.contact_address.removeprefix("fabric://").split(":")
        async with proxy(host, int(port)) as passed_on:
            a = await connect(f"fabric://127.0.0.1:{passed_on}")
            b = await accepted.get()
            reason = "server: a proxy or address translation (NAT) is between the two processes"
            assert facts(a) == facts(b) == ("stream", reason, "tcp")
            await a.write({"x": to_serialize(np.full(NBYTES, 3, "u1"))})
            assert ((await b.read())["x"] == 3).all()
            await a.close()
            await b.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", ""])
@pytest.mark.parametrize("reached", ["127.0.0.1", "[::1]"])
async def test_whatever_a_listener_is_bound_to(host, reached):
    accepted = asyncio.Queue()
    with dask.config.set(TCP):
        async with listen(f"fabric://{host}", accepted.put) as listener:
            port = listener.listen_address.rpartition(":")[2]
            try:
                a = await connect(f"fabric://{reached}:{port}", timeout=2)
            except OSError:
                pytest.skip("it does not listen there")
            b = await accepted.get()
            await a.write("x")
            await b.read()
            assert facts(a) == facts(b) == ("cma", "", "tcp")
            a.abort(), b.abort()


async def test_off_on_one_side(meet):
    mine, theirs = await meet(there=OFF)
    assert mine == theirs
    assert mine[:2] == ("stream", "client: fabric.cma.enabled is false in its configuration")
    with dask.config.set(OFF):
        async with pair("fabric", "fabric") as (a, b):
            assert a.paths == b.paths == {"host": "stream"}


@contextlib.asynccontextmanager
async def pair(client_scheme, server_scheme):
    accepted = asyncio.Queue()
    async with listen(f"{server_scheme}://127.0.0.1", accepted.put) as listener:
        host_port = listener.contact_address.partition("://")[2]
        a = await connect(f"{client_scheme}://{host_port}")
        b = await accepted.get()
        try:
            yield a, b
        finally:
            a.abort(), b.abort()


@pytest.mark.parametrize(
    ("client", "server", "side"),
    [("fabric", "fabric+tcp", "server"), ("fabric+tcp", "fabric", "client")],
)
async def test_a_scheme_that_uses_its_stream_only(client, server, side):
    async with pair(client, server) as (a, b):
        for comm in (a, b):
            await comm.write({"x": to_serialize(np.full(NBYTES, 3, "u1"))})
        for comm in (a, b):
            assert ((await comm.read())["x"] == 3).all()
            assert comm.paths == {"host": "stream"}
            assert comm.refused_paths["cma"] == f"{side}: fabric+tcp:// uses the stream only"
            assert comm.statistics()["offered_frames"] == 0


async def test_a_process_talks_to_itself():
    async with pair("fabric", "fabric") as (a, b):
        await a.write({"x": to_serialize(np.full(NBYTES, 3, "u1"))})
        assert ((await b.read())["x"] == 3).all()
        assert a.paths == b.paths == {"host": "cma"}
        assert b.statistics()["fetched_frames"] == 1


@pytest.mark.netns
@pytest.mark.parametrize(("config", "stream"), [({}, "unix"), (TCP, "tcp")])
async def test_another_pid_namespace(meet, config, stream):
    mine, theirs = await meet(prefix=unsharing("-p", "-f"), here=config)
    assert mine == theirs
    assert mine[0] == "stream" and mine[2] == stream
    assert "namespace" in mine[1] or "not permitted" in mine[1]


@pytest.mark.netns
async def test_another_user_namespace_of_the_same_user(meet):
    """As containers without root have, even where the user is the same everywhere."""
    mine, theirs = await meet(prefix=unsharing("-U", "-r"))
    assert mine == theirs
    assert mine[0] == "stream" and mine[2] == "unix"
    assert "not permitted: another user or user namespace" in mine[1]


async def test_another_user(meet):
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    mine, theirs = await meet(uid=NOBODY)
    assert mine == theirs
    assert mine[0] == "stream"
    assert mine[1].startswith("client: process_vm_readv is not permitted: another user or")


SERVE = """
import asyncio, sys
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
async def handle(comm):
    await comm.write({"x": to_serialize(np.full(NBYTES, 3, "u1"))})
    await comm.read()
async def main():
    if len(sys.argv) > 1:
        comm = await connect(sys.argv[1])
        assert ((await comm.read())["x"] == 3).all()
        print(comm.paths["host"], comm.control_stream, comm.statistics()["fetched_frames"])
        await comm.write("done")
        await comm.close()
        return
    async with listen("fabric://0.0.0.0:8786", handle):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
""".replace("NBYTES", str(NBYTES))


@pytest.mark.netns
def test_across_network_namespaces_of_one_host(hosts):
    """Where the stream is TCP, over a network, frames are still read from memory."""
    here, there = (["ip", "netns", "exec", name, sys.executable, "-c", SERVE] for name in hosts)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(there, **pipes) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            done = subprocess.run(
                [*here, "fabric://10.77.0.2:8786"], capture_output=True, text=True, timeout=60
            )
        finally:
            server.kill()
    assert done.stdout == "cma tcp 1\n", done.stderr


# ---------------------------------------------------------------- permission under Yama


@pytest.fixture
def allowed(monkeypatch):
    """The number of calls that allow peers to read this process."""
    calls = []
    monkeypatch.setattr(cma, "allow_peers", lambda: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("content", "count"), [("0\n", 0), ("1\n", 1), ("2\n", 0), ("3\n", 0), ("", 0), (None, 0)]
)
def test_peers_are_allowed_where_that_takes_a_permission(allowed, tmp_path, content, count):
    scope = tmp_path / "ptrace_scope"
    if content is not None:
        scope.write_text(content)
    provider.allow_ptrace(scope)
    assert len(allowed) == count


@pytest.mark.parametrize("config", [OFF, {"fabric.cma.allow-ptrace": False}, {}])
def test_nobody_is_allowed_against_the_configuration(monkeypatch, config):
    asked = []
    monkeypatch.setattr(provider, "allow_ptrace", lambda: asked.append(1))
    monkeypatch.setattr(runtime, "_applied", None)
    with dask.config.set(config):
        runtime.settings()
        runtime.settings()
    assert asked == ([] if config else [1])


def test_a_forked_child_asks_for_itself(monkeypatch):
    asked = []
    monkeypatch.setattr(provider, "allow_ptrace", lambda: asked.append(1))
    monkeypatch.setattr(runtime, "_applied", None)
    runtime.settings()
    pid = os.fork()
    if pid == 0:
        runtime.settings()
        os._exit(len(asked))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert len(asked) == 1

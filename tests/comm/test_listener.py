"""The accept loop under stress, and the advertised address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import resource
import socket
import subprocess
import sys

import dask
import pytest
from distributed.comm import connect, listen
from distributed.comm.addressing import unparse_host_port
from distributed.utils import wait_for

from dask_fabric.comm import listener as module
from dask_fabric.comm import servers
from dask_fabric.comm.channels import factory
from dask_fabric.comm.servers import scheduler_host, server_of
from dask_fabric.providers import by_name
from dask_fabric.wire.hello import PREAMBLE, Hello


async def ignore(comm):
    await comm.close()


class Server:
    """The attributes of a worker that the listener reads."""

    class scheduler:
        address = "fabric://10.9.8.7:8786"

    async def handle_comm(self, comm):
        await comm.close()


def test_the_scheduler_of_a_server():
    assert scheduler_host(Server()) == "10.9.8.7"
    assert scheduler_host(None) is None
    for address in (None, 7, "no-such-scheme://x", "fabric://[broken:1"):
        server = Server()
        server.scheduler = type("scheduler", (), {"address": address})
        assert scheduler_host(server) is None


async def test_the_server_is_found_behind_a_wrapped_handler(monkeypatch):
    monkeypatch.setattr(servers, "Worker", type("Worker", (), {"_instances": [Server()]}))
    server = Server()
    async with listen("fabric://127.0.0.1", lambda comm: server.handle_comm(comm)) as listener:
        assert server_of(listener) is None
        server.listeners = [listener]
        monkeypatch.setattr(servers.Worker, "_instances", [Server(), server])
        assert server_of(listener) is server


async def test_the_contact_address_of_a_worker_leads_to_its_scheduler(monkeypatch):
    asked = []

    def advertised_host(families, scheduler_host):
        asked.append((families, scheduler_host))
        return "10.9.8.6"

    monkeypatch.setattr(module, "advertised_host", advertised_host)
    async with listen("fabric://0.0.0.0", Server().handle_comm) as listener:
        port = listener.get_host_port()[1]
        assert listener.contact_address == f"fabric://10.9.8.6:{port}"
        assert listener.contact_address == f"fabric://10.9.8.6:{port}"
    assert asked == [([socket.AF_INET], "10.9.8.7")]


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_out_of_descriptors_pauses_and_goes_on(scheme, monkeypatch, caplog):
    monkeypatch.setattr(module, "_ACCEPT_PAUSE_SECONDS", 0.01)
    async with listen(f"{scheme}://127.0.0.1", ignore) as listener:
        listening, take = listener._sockets[0], listener._take
        if listening.family == socket.AF_UNIX:
            address = unparse_host_port(*listener.get_host_port())
            take = functools.partial(listener._take_unix, address)
        failures = [OSError(errno.EMFILE, "Too many open files")] * 2

        class Exhausted:
            """The listening socket, in the first two calls out of descriptors."""

            def fileno(self):
                return listening.fileno()

            def accept(self):
                if failures:
                    raise failures.pop()
                return listening.accept()

        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.add_reader(listening, listener._accept, Exhausted(), take)
        comm = await wait_for(connect(listener.contact_address), 10)
        assert comm.control_stream == ("unix" if scheme == "fabric" else "tcp")
        await comm.close()
    assert not failures
    assert len([r for r in caplog.records if "cannot accept" in r.message]) == 2
    assert "ulimit" in caplog.text


async def test_a_connection_reset_before_it_is_accepted(caplog):
    async with listen("fabric://127.0.0.1", ignore) as listener:
        early = socket.create_connection(listener.get_host_port())
        early.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        early.close()  # that sends a reset
        comm = await connect(listener.contact_address)
        await comm.close()
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


async def test_no_socket_is_left_when_a_client_of_tls_goes_meanwhile(
    temporary_security, monkeypatch
):
    """The reset arrives when the socket is TLS's already, and before the channel has begun."""
    made = []

    class Reset:
        def __init__(self, loop, transport, *args):
            made.append(transport.sock)
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    args = temporary_security.get_listen_args("scheduler")
    async with listen("fabric+tls://127.0.0.1", ignore, **args) as listener:
        monkeypatch.setattr(factory, "Channel", Reset)
        with socket.create_connection(listener.get_host_port()) as client:
            client.sendall(b"\x16")
            while not made:
                await asyncio.sleep(0)
            assert [sock.fileno() for sock in made] == [-1]
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


async def test_a_failing_handler_is_logged_and_its_comm_closed(caplog):
    async def fail(comm):
        raise ValueError("from the test")

    async with listen("fabric://127.0.0.1", fail) as listener:
        comm = await connect(listener.contact_address)
        with pytest.raises(OSError):
            await wait_for(comm.read(), 5)
    assert "from the test" in caplog.text


async def test_a_stop_before_dasks_handshake_closes_the_connection():
    """Between accept and the end of our hello: the client must not wait for ever."""
    listener = await listen("fabric://127.0.0.1", ignore)
    reader, writer = await asyncio.open_connection(*listener.get_host_port())
    while not listener._opening:
        await asyncio.sleep(0)
    listener.stop()
    assert not listener._opening
    with contextlib.suppress(ConnectionError):
        assert await wait_for(reader.read(), 5) == b""
    writer.close()
    while listener._tasks:
        await asyncio.sleep(0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 brought eager tasks")
async def test_an_eager_task_that_ends_at_once_is_not_kept():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    async with listen("fabric+tcp://127.0.0.1", ignore) as listener:
        for _ in range(3):
            comm = await connect(listener.contact_address)
            await comm.close()
        with socket.create_connection(listener.get_host_port()) as stranger:
            stranger.sendall(b"x" * 16)
            await loop.run_in_executor(None, stranger.recv, 1)
        while listener._tasks:
            await asyncio.sleep(0)


def test_an_address_before_the_start_is_a_valueerror():
    listener = listen("fabric://127.0.0.1", ignore)
    with pytest.raises(ValueError, match="before it is started"):
        _ = listener.contact_address


FORK = """
import asyncio, errno, os, socket, sys
from distributed.comm import connect, listen
from distributed.security import Security
from dask_fabric.comm.network import unix

scheme, *reached = sys.argv[1:]
security = Security.temporary() if scheme == "fabric+tls" else Security()

async def greet(comm):
    await comm.write("hello")
    await comm.close()

async def main():
    listener = await listen(f"{scheme}://127.0.0.1", greet, **security.get_listen_args("worker"))
    host, port = listener.get_host_port()
    silent = socket.create_connection((host, port))
    while not listener._opening:
        await asyncio.sleep(0)
    (child_reads, parent_writes), (parent_reads, child_writes) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(parent_writes)
        listener.stop()  # as an ending interpreter may
        os.write(child_writes, b"x")
        os.read(child_reads, 1)  # until the parent is done, or gone
        os._exit(7)
    os.read(parent_reads, 1)
    for name in reached:  # the loop of the parent goes on
        address = f"{name}://{host}:{port}"
        comm = await connect(address, **security.get_connection_args("client"))
        assert await comm.read() == "hello"
        print(comm.control_stream)
        comm.abort()
    listener.stop()
    assert silent.recv(1) == b""
    silent.close()
    for family, name in (
        (socket.AF_INET, (host, port)), (socket.AF_UNIX, unix._name(f"{host}:{port}"))
    ):
        with socket.socket(family) as probe:
            assert probe.connect_ex(name) == errno.ECONNREFUSED
    os.close(parent_writes)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("reached", "streams"),
    [(["fabric", "fabric", "fabric+tcp"], ["unix", "tcp"]), (["fabric+tls"] * 2, ["tcp"])],
)
def test_a_forked_child_keeps_no_socket_and_the_parent_goes_on(reached, streams):
    command = [sys.executable, "-c", FORK, *reached]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.split() == streams, done.stderr


# ---- more connections than may be in the handshake

HELLO = Hello(scheme="fabric+tcp").encode()
SILENT = {
    "silent": b"",
    "silent inside TLS": b"\x16",
    "half a hello": HELLO[:100],
    "silent after the hellos": HELLO,  # before Dask's own handshake
}


@pytest.mark.parametrize("said", SILENT)
async def test_silent_connections_keep_no_good_client_out(said, monkeypatch, caplog, security_of):
    """More than may be in the handshake, and each longer than a good client."""
    monkeypatch.setattr(module, "_CROWD_PATIENCE_SECONDS", 0.1)
    scheme = "fabric+tls" if "TLS" in said else "fabric+tcp"
    listen_args, connect_args = security_of(scheme)
    with dask.config.set({"fabric.limits.handshakes": 10}), contextlib.ExitStack() as stack:
        async with listen(f"{scheme}://127.0.0.1", echo_once, **listen_args) as listener:
            host, port = listener.get_host_port()
            for _ in range(60):
                one = stack.enter_context(socket.create_connection((host, port)))
                one.sendall(SILENT[said])
            comm = await connect(listener.contact_address, timeout=20, **connect_args)
            await comm.write("ping")
            assert await comm.read() == "ping"
            assert len(listener._opening) <= 10
            await comm.close()
    assert "the oldest of 10 connections in the handshake" in caplog.text


async def ask(address: str) -> None:
    comm = await connect(address, timeout=20)
    await comm.write("ping")
    assert await comm.read() == "ping"
    await comm.close()


async def test_all_listeners_together_keep_a_limit(monkeypatch):
    monkeypatch.setattr(module, "_CROWD_PATIENCE_SECONDS", 0.1)
    with dask.config.set({"fabric.limits.handshakes": 10}), contextlib.ExitStack() as stack:
        async with (
            listen("fabric+tcp://127.0.0.1", echo_once) as one,
            listen("fabric+tcp://127.0.0.1", echo_once) as other,
        ):
            for listener in (one, other):
                for _ in range(30):
                    stack.enter_context(socket.create_connection(listener.get_host_port()))
            for listener in (one, other):
                await ask(listener.contact_address)
                assert len(one._opening) + len(other._opening) <= 10


async def test_silent_connections_leave_descriptors_for_other_uses(monkeypatch, caplog):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.socket()) for _ in range(60)]
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 40, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        async with listen("fabric+tcp://127.0.0.1", echo_once) as listener:
            for one in silent:
                one.connect(listener.get_host_port())
            for _ in range(3):
                await ask(listener.contact_address)
                open(os.devnull).close()
    assert "few open files are left" in caplog.text
    assert "cannot accept" not in caplog.text


async def test_silent_connections_do_not_keep_the_last_descriptors(caplog):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"fabric.timeouts.handshake": "1000s"}))
        silent = [stack.enter_context(socket.socket()) for _ in range(12)]
        async with listen("fabric+tcp://127.0.0.1", echo_once) as listener:
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, limits[1]))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
            for one in silent:
                one.connect(listener.get_host_port())
                one.setblocking(False)
            for one in silent[:7]:  # for each of these another one is accepted
                with contextlib.suppress(ConnectionResetError):
                    await loop.sock_recv(one, 1000)
    assert "few open files are left" in caplog.text


async def test_connections_that_join_comms_in_the_handshake_are_counted(monkeypatch):
    monkeypatch.setattr(module, "_CROWD_PATIENCE_SECONDS", 0.1)
    lanes = by_name()["lanes"]
    loop = asyncio.get_running_loop()

    async def say(**hello) -> Hello:
        one = stack.enter_context(socket.socket())
        one.setblocking(False)
        one.bind(("127.0.0.2", 0))
        await loop.sock_connect(one, listener.get_host_port())
        said = Hello(limits={"frames": 1, "header": 1 << 20, "message": 1 << 30}, **hello)
        await loop.sock_sendall(one, said.encode())
        *_, nbytes = PREAMBLE.unpack(await loop.sock_recv(one, PREAMBLE.size))
        return Hello.decode(await loop.sock_recv(one, nbytes))

    with dask.config.set({"fabric.limits.handshakes": 10}), contextlib.ExitStack() as stack:
        async with listen("fabric://127.0.0.1", echo_once) as listener:
            for _ in range(4):
                server = await say(paths=("stream", "lanes"), described={"lanes": {"most": 8}})
                for number in range(8):
                    joins = {**server.described["lanes"], "path": "lanes", "number": number}
                    await say(joins={**joins, "epoch": 0})
                    assert len(listener._opening) + lanes.unclaimed_count() <= 10
            await ask(listener.contact_address)
        while lanes.unclaimed_count():
            await asyncio.sleep(0.01)


async def test_many_good_clients_at_once_wait_for_each_other(caplog):
    with dask.config.set({"fabric.limits.handshakes": 3}):
        async with listen("fabric+tcp://127.0.0.1", echo_once) as listener:
            address = listener.contact_address
            comms = await asyncio.gather(*(connect(address, timeout=60) for _ in range(100)))
            for comm in comms:
                await comm.write("ping")
                assert await comm.read() == "ping"
                await comm.close()
    assert "refused" not in caplog.text


async def echo_once(comm):
    await comm.write(await comm.read())
    await comm.close()


@pytest.fixture
def security_of(temporary_security):
    def arguments(scheme: str) -> tuple[dict, dict]:
        if scheme != "fabric+tls":
            return {}, {}
        listening = temporary_security.get_listen_args("scheduler")
        return listening, temporary_security.get_connection_args("client")

    return arguments

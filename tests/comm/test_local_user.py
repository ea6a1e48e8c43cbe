"""Processes of other users on this host: refused over TCP as over Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time

import dask
import pytest
from distributed.comm import connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.comm.registry import get_backend

from dask_fabric.comm.network import local_user, unix
from dask_fabric.wire.hello import Hello

from ..conftest import NETWORKS

NOBODY = 65534
FIN_WAIT2 = "05"  # in /proc/net/tcp: closed, and the other side has not closed yet
REFUSAL = "accepts processes of its own user only"
HELLO = Hello(scheme="fabric+tcp").encode()
# Another user's client: it says its hello, and prints what it is told.
CLIENT = """
import os, socket, sys
family, host, port, user = sys.argv[1:]
client = socket.socket(int(family))
"".encode("idna")
os.setuid(int(user))
client = socket.socket(int(family))
client.connect((host, int(port)))
client.sendall(sys.stdin.buffer.read())
sys.stdout.buffer.write(client.recv(10_000))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


async def ignore(comm) -> None:
    await comm.close()


async def told(family: int, host: str, port: int, user: int) -> str:
    command = [sys.executable, "-c", CLIENT, *map(str, (int(family), host, port, user))]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(HELLO), 30)
    return out.decode(errors="replace")


@needs_root
@pytest.mark.parametrize("switched_on", [True, False])
@pytest.mark.parametrize(
    ("bound", "family", "host"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("[::1]", socket.AF_INET6, "::1"),
    ],
)
async def test_another_user_of_this_host(bound, family, host, switched_on, caplog):
    with dask.config.set({"fabric.auth.local": switched_on}):
        async with listen(f"fabric+tcp://{bound}", ignore) as listener:
            port = listener.get_host_port()[1]
            assert (REFUSAL in await told(family, host, port, NOBODY)) == switched_on
            assert REFUSAL not in await told(family, host, port, 0)
    assert caplog.text.count(REFUSAL) == switched_on


def kernel_state(source: int, target: int) -> str:
    """Give the state of the connection between two ports, as the kernel writes it."""
    ends = f":{source:04X}", f":{target:04X}"
    with open("/proc/net/tcp") as table:
        rows = (line.split() for line in table)
        return next(row[3] for row in rows if (row[1][-5:], row[2][-5:]) == ends)


@needs_root
async def test_another_user_who_has_closed_already(caplog):
    """What he has sent is not used, though the kernel says by then that his socket is root's."""
    with dask.config.set({"fabric.auth.local": True}):
        async with listen("fabric+tcp://127.0.0.1", ignore) as listener:
            host, port = listener.get_host_port()
            client = CLIENT.replace("client.recv(10_000)", "b'%d' % client.getsockname()[1]")
            arguments = map(str, (int(socket.AF_INET), host, port, NOBODY))
            command = [sys.executable, "-c", client, *arguments]
            # Meanwhile the event loop cannot accept the connection.
            done = subprocess.run(command, input=HELLO, capture_output=True, timeout=60)
            end = time.monotonic() + 30
            while kernel_state(int(done.stdout), port) != FIN_WAIT2:
                assert time.monotonic() < end
            while REFUSAL not in caplog.text:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)


# Another user's server: it says its hello, which a client believes where no key is required.
SERVER_OF_ANOTHER = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
print(server.getsockname()[1], flush=True)
hello = sys.stdin.buffer.read()
while True:
    accepted, _ = server.accept()
    accepted.recv(10_000)
    accepted.sendall(hello)
    accepted.recv(10_000)
"""


@needs_root
@pytest.mark.parametrize("switched_on", [True, False])
async def test_a_server_of_another_user(switched_on):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER_OF_ANOTHER, str(NOBODY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with server, contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        port = int(await asyncio.to_thread(server.stdout.readline))
        server.stdin.write(HELLO)
        server.stdin.close()
        connector = get_backend("fabric+tcp").get_connector()
        with dask.config.set({"fabric.auth.local": switched_on}):
            connecting = asyncio.wait_for(connector.connect(f"127.0.0.1:{port}"), 30)
            if switched_on:
                with pytest.raises(FatalCommClosedError, match="and the server is of another"):
                    await connecting
            else:
                (await connecting).abort()


async def test_the_same_user_is_served():
    with dask.config.set({"fabric.auth.local": True}):
        for scheme in ("fabric", "fabric+tcp"):
            async with listen(f"{scheme}://127.0.0.1", ignore) as listener:
                comm = await connect(listener.contact_address, timeout=20)
                await comm.close()


@needs_root
async def test_a_client_on_another_host_is_not_asked(hosts):
    """Its user ids are not those of this host."""
    server = subprocess.Popen(
        ["ip", "netns", "exec", hosts[0], sys.executable, "-c", SERVER, f"{NETWORKS[0]}.1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        port = await asyncio.to_thread(server.stdout.readline)
        client = CLIENT.replace("os.setuid", "(lambda user: None)")
        arguments = map(str, (int(socket.AF_INET), f"{NETWORKS[0]}.1", int(port), NOBODY))
        asked = await asyncio.to_thread(
            subprocess.run,
            ["ip", "netns", "exec", hosts[1], sys.executable, "-c", client, *arguments],
            input=HELLO,
            capture_output=True,
            timeout=60,
        )
        server.kill()
    assert asked.stdout and REFUSAL.encode() not in asked.stdout


SERVER = """
import asyncio, dask, sys
from distributed.comm import listen

async def ignore(comm):
    await comm.close()

async def main():
    with dask.config.set({"fabric.auth.local": True}):
        async with listen(f"fabric+tcp://{sys.argv[1]}", ignore) as listener:
            print(listener.get_host_port()[1], flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""


def test_an_ipv4_client_of_an_ipv6_socket():
    server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with server, socket.create_connection(("127.0.0.1", server.getsockname()[1])):
        accepted, _ = server.accept()
        with accepted:
            names = accepted.getpeername(), accepted.getsockname()
            assert names[0][0].startswith("::ffff:")
            assert local_user._owner(socket.AF_INET6, *names) == os.geteuid()


def test_a_client_that_is_gone_is_nobody_of_ours():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            assert not local_user.is_of_another_user(accepted)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            name = client.getsockname()
            client.close()  # with a reset: the kernel forgets it
            assert local_user._owner(socket.AF_INET, name, accepted.getsockname()) is None


@pytest.mark.parametrize(("strict", "expected"), [(False, True), (True, False)])
def test_root_serves_every_user_of_a_unix_socket_unless_it_is_strict(strict, expected, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(unix, "peer_uid", lambda sock: 1000)
    assert unix.is_welcome(None, b"\x0000f3a", strict) is expected

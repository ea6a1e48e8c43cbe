"""Clients and servers of different protocols: each ends soon, or logs once what it found.

The other pairs, of foreign clients and our listeners, are in ``tests/faults/test_hostile.py`` and
``tests/wire/test_foreign.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web
from distributed import Scheduler, Worker
from distributed.comm import connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.utils import wait_for

from ..conftest import NO_DASHBOARD, UCX_SCHEME, schemes

PATIENCE_SECONDS = 2.5  # of Dask, whose first attempt has a fifth of it
# Reads the table: what stands in the error (FATAL), or in the log (SAID).
FATAL, SAID = "fatal", "said"
PLAIN_TCP = (FATAL, "speaks Dask's plain tcp://")
HTTP = (FATAL, "speaks HTTP")
NO_TLS = (FATAL, "TLS failed, or the other end does not use it")
WANTS_TLS = (SAID, "does it require TLS?")
WANTS_SECURITY = (FATAL, "this server requires TLS")
SILENT = (SAID, "it sent nothing")
CLOSES = (SAID, "is it a server of this scheme|is the address right")
PLAIN = {
    "tcp": PLAIN_TCP,
    "tls": WANTS_TLS,
    "ws": HTTP,
    "wss": WANTS_TLS,
    "dashboard": HTTP,
    "ssh": (FATAL, "speaks SSH"),
    "silent": SILENT,
    "closes": CLOSES,
    "closes when it has heard something": CLOSES,
    "fabric with TLS": WANTS_SECURITY,
    "fabric+tls": WANTS_SECURITY,
}
SECURED = {
    "tcp": NO_TLS,
    "tls": PLAIN_TCP,
    "ws": SILENT,
    "wss": HTTP,
    "dashboard": SILENT,
    "ssh": NO_TLS,
    "silent": SILENT,
    "closes": CLOSES,
    "closes when it has heard something": NO_TLS,
    "fabric": NO_TLS,
    "fabric+tcp": NO_TLS,
}
UCX = {name: PLAIN[name] for name in ("tcp", "dashboard", "silent", "fabric+tls")}
CLIENTS = {"fabric": PLAIN, "fabric+tcp": PLAIN, "fabric with TLS": SECURED, "fabric+tls": SECURED}
if UCX_SCHEME in schemes():
    CLIENTS[UCX_SCHEME] = UCX
SECURE = ("tls", "wss", "fabric with TLS", "fabric+tls")


async def ignore(comm):
    with contextlib.suppress(OSError):
        await comm.read()


@contextlib.asynccontextmanager
async def of_dask(name, security):
    args = security.get_listen_args("scheduler") if name in SECURE else {}
    async with listen(f"{name.partition(' ')[0]}://127.0.0.1:0", ignore, **args) as listener:
        yield int(listener.listen_address.rpartition(":")[2])


@contextlib.asynccontextmanager
async def dashboard(name, security):
    server = tornado.httpserver.HTTPServer(tornado.web.Application())
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield sockets[0].getsockname()[1]
    server.stop()
    await server.close_all_connections()


@contextlib.asynccontextmanager
async def by_hand(name, security):
    handlers = set()

    async def handle(reader, writer):
        handlers.add(asyncio.current_task())
        try:
            if name == "ssh":
                writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            if name != "closes":
                await reader.read(1)
            if not name.startswith("closes"):
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    for handler in handlers:
        handler.cancel()
    await asyncio.gather(*handlers, return_exceptions=True)
    await asyncio.sleep(0)  # in which their transports close


def server_of(name):
    if name == "dashboard":
        return dashboard
    return by_hand if name in ("ssh", "silent") or name.startswith("closes") else of_dask


def said(caplog) -> list[str]:
    return [r.message for r in caplog.records if r.name == "dask_fabric.comm.network.attempts"]


@pytest.mark.filterwarnings("ignore")  # of Dask's own servers, which we lead astray
@pytest.mark.parametrize(
    ("client", "server"), [(client, server) for client in CLIENTS for server in CLIENTS[client]]
)
async def test_a_pair(client, server, temporary_security, caplog):
    where, expected = CLIENTS[client][server]
    args = temporary_security.get_connection_args("client") if client in SECURE else {}
    caplog.set_level(logging.WARNING)
    async with server_of(server)(server, temporary_security) as port:
        address = f"{client.partition(' ')[0]}://127.0.0.1:{port}"
        kind = FatalCommClosedError if where == FATAL else OSError
        with pytest.raises(kind, match=expected if where == FATAL else "") as caught:
            await connect(address, timeout=PATIENCE_SECONDS, **args)
    lines = said(caplog)
    if client in SECURE and server == "dashboard" and "wrong version number" in lines[0]:
        return  # a hello of TLS is random: in one of a hundred, HTTP finds the end of a request
    assert isinstance(caught.value, FatalCommClosedError) == (where == FATAL)
    assert len(lines) == 1 and address in lines[0], lines
    assert any(part in lines[0] for part in expected.split("|"))


@pytest.mark.filterwarnings("ignore")
async def test_a_worker_at_a_scheduler_of_another_protocol_says_so_once(caplog):
    """Dask's worker retries for ever, without filling the logs of both sides."""
    scheduler = await Scheduler(protocol="tcp", host="127.0.0.1", **NO_DASHBOARD)
    address = scheduler.address.replace("tcp://", "fabric://")
    worker = Worker(address, host="127.0.0.1", dashboard=False, dashboard_address="127.0.0.1:0")
    starting = asyncio.ensure_future(worker.start())
    tries = scheduler.listeners[0].tcp_server
    count = 0
    handle = tries.handle_stream

    def counted(*args):
        nonlocal count
        count += 1
        return handle(*args)

    tries.handle_stream = counted
    with contextlib.suppress(asyncio.TimeoutError):
        await wait_for(asyncio.shield(starting), 3)
    assert len(said(caplog)) == 1 and "use tcp:// in the address" in said(caplog)[0]
    assert 1 <= count <= 6
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await starting
    await worker.close()
    await scheduler.close()

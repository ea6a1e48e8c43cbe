"""Other processes to harm, and a check for what a fault leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.security import Security
from distributed.utils import wait_for

from dask_fabric.engine import socket_jobs
from dask_fabric.memory import pool
from dask_fabric.paths.cma import copies
from dask_fabric.paths.ofi import worker as ofi
from dask_fabric.paths.ucx import core as ucx

from ..conftest import OFI_SCHEME, UCX_SCHEME

PATIENCE_SECONDS = 30
RSS_GROWTH_BYTES = 64 << 20
# Of UCX: it waits for ever for room in a dead peer's queue, at no other cost than these counts.
NEVER_LESS = ("peer_count", "break_count", "abandoned_count", "refused_count")
OF_OFI = ("offered_count", "in_flight_count", "abandoned_count")
PEM_FIELDS = ("tls_ca_file", "tls_client_cert", "tls_client_key",
              "tls_scheduler_cert", "tls_scheduler_key")  # fmt: skip


class Peer:
    """A process that runs ``peer.py``.

    Parameters
    ----------
    prefix : tuple of str
        Words before the interpreter in the command.
    """

    def __init__(self, prefix: tuple[str, ...], order: dict) -> None:
        script = Path(__file__).with_name("peer.py")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    async def line(self) -> str:
        """Give the next line of its output; empty at its end."""
        return (await self._apart(self.process.stdout.readline)).strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def stopped(self) -> None:
        """Wait until it is stopped (or ended)."""
        flags = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        await self._apart(os.waitid, os.P_PID, self.process.pid, flags)

    async def _apart(self, function, *args):
        return await wait_for(asyncio.to_thread(function, *args), PATIENCE_SECONDS)

    async def kill(self) -> None:
        self.process.kill()
        await self._apart(self.process.wait)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start_peer():
    """A function that starts a `Peer`, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start_peer(
            role: str,
            address: str,
            security: Security | None = None,
            *,
            listens: bool = False,
            message_bytes: int = 200_000_000,
            config: dict | None = None,
            probe_count: int | None = None,
            pause_seconds: float | None = None,
            prefix: tuple[str, ...] = (),
        ) -> Peer:
            order = dict(role=role, address=address, listens=listens, message_bytes=message_bytes)
            order["config"] = config or {}
            order.update(probe_count=probe_count, pause_seconds=pause_seconds)
            order["security"] = security and {
                "require_encryption": True, **{f: getattr(security, f) for f in PEM_FIELDS}
            }  # fmt: skip
            peer = Peer(prefix, order)
            stack.callback(peer.end)
            return peer

        yield start_peer


async def until(condition) -> None:
    """Let the loop run until *condition* is true."""

    async def poll():
        while not condition():
            await asyncio.sleep(0.001)

    await wait_for(poll(), PATIENCE_SECONDS)


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def holdings() -> dict[str, int]:
    """The resources of this process that comms may hold."""
    gc.collect()
    figures = ucx.statistics()
    return {
        "jobs": socket_jobs.statistics()["job_count"] + copies.statistics()["job_count"],
        "pool": pool.statistics()["in_use_bytes"],
        "descriptors": descriptor_count(),
        **{key: figures[key] for key in figures if key not in NEVER_LESS},
        **{f"ofi {key}": ofi.statistics()[key] for key in OF_OFI},
    }


def resident_bytes() -> int:
    """The resident memory of this process, without freed memory that its allocator keeps."""
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


@pytest_asyncio.fixture(autouse=True)
async def warm(request):
    """Have this process allocate what it keeps: resources of engine, executor and paths."""
    if OFI_SCHEME in request.node.name:
        request.getfixturevalue("ofi_by_tcp")
    of_library = [name for name in (UCX_SCHEME, OFI_SCHEME) if name in request.node.name]
    for scheme in of_library or ("fabric", "fabric+tcp"):
        async with listen(f"{scheme}://127.0.0.1", echo, deserialize=False) as listener:
            comm = await connect(listener.contact_address)
            for _ in range(2):
                await comm.write({"x": to_serialize(np.ones(10_000_000, "u1"))})
                await comm.read()
            await comm.close()
    await asyncio.to_thread(gc.collect)


@contextlib.asynccontextmanager
async def nothing_left(rss: bool = False):
    """Check that everything taken inside is returned soon after; with *rss*, memory too."""
    before = holdings()
    rss_before_bytes = resident_bytes()
    yield
    with contextlib.suppress(asyncio.TimeoutError):
        await until(lambda: all(now <= before[key] for key, now in holdings().items()))
    left = {key: (before[key], now) for key, now in holdings().items() if now > before[key]}
    assert not left, f"left behind (before, now): {left}"
    pool.trim()
    if rss:
        assert resident_bytes() < rss_before_bytes + RSS_GROWTH_BYTES


async def echo(comm):
    with contextlib.suppress(CommClosedError):
        while True:
            await comm.write(await comm.read())


@contextlib.asynccontextmanager
async def serving(scheme, listen_args, handler=echo):
    async with listen(f"{scheme}://127.0.0.1", handler, **listen_args) as listener:
        yield listener


async def check_good_client(listener, connect_args) -> None:
    """Check that the listener still works."""
    comm = await wait_for(connect(listener.contact_address, **connect_args), PATIENCE_SECONDS)
    await comm.write({"op": "ping"})
    assert await wait_for(comm.read(), PATIENCE_SECONDS) == {"op": "ping"}
    await comm.close()

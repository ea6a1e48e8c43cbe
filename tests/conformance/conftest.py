"""The shared suite: what any scheme must do to be a comm of Dask's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys

import pytest
import pytest_asyncio
from distributed.comm import connect, listen
from distributed.comm.core import Comm


@pytest.fixture
def has_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")


@pytest_asyncio.fixture
async def open_pair(scheme, listen_args, connect_args):
    """A function that connects two comms in this process: ``a`` connected, ``b`` accepted."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_pair(host: str = "127.0.0.1", deserialize: bool = True):
            accepted: asyncio.Queue[Comm] = asyncio.Queue()

            async def handle(comm):
                accepted.put_nowait(comm)

            listener = await listen(
                f"{scheme}://{host}", handle, deserialize=deserialize, **listen_args
            )
            stack.callback(listener.stop)
            a = await connect(listener.contact_address, deserialize=deserialize, **connect_args)
            stack.callback(a.abort)
            b = await accepted.get()
            stack.callback(b.abort)
            return a, b

        yield open_pair


@pytest_asyncio.fixture
async def pair(open_pair):
    return await open_pair()


@pytest.fixture
def run(tmp_path):
    """Start a dask command, and end it with the test; its output is in the file returned."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, prefix: tuple[str, ...] = (), **environment: str):
            log = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", *arguments],
                env={**os.environ, **environment},
                cwd=tmp_path,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(_end, process)
            return log

        yield run


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def free_port():
    """A function that gives a port of 127.0.0.1 that nobody uses."""

    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return free_port

"""The shared suite: what Dask expects of the comms of any scheme."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

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


@contextlib.contextmanager
def commands(folder: Path):
    """A function that starts a dask command with its log in *folder*; all end with the block."""
    started: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> None:
            log = folder / f"{len(started)}.log"
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", *arguments],
                env={**os.environ, **environment},
                cwd=folder,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            started.append(process)

        try:
            yield run
        finally:
            _end(started)


def _end(processes: list[subprocess.Popen]) -> None:
    """End all at once but for the first, a scheduler, which workers would look for."""
    for some in (processes[1:], processes[:1]):
        for process in some:
            process.terminate()
        for process in some:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def run(tmp_path):
    with commands(tmp_path) as run:
        yield run


def unused_port() -> int:
    """A port of 127.0.0.1 that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_port():
    return unused_port

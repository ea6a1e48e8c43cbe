"""Pairs of channels joined by one path: the same suite runs over every path."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import dask
import pytest
import pytest_asyncio
from tests.conftest import ofi_settings

from dask_fabric import config
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.detach import detach
from dask_fabric.engine.transport import PlainTransport
from dask_fabric.memory import files, pool
from dask_fabric.paths.cma.endpoint import CMAPath
from dask_fabric.paths.cma.process import process_of
from dask_fabric.paths.lanes.endpoint import LanesPath
from dask_fabric.paths.shm import exchange as shm
from dask_fabric.paths.shm.endpoint import SHMPath
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello

from .file_path import FOLDER, file_path

LEAST_BYTES = 65_536


async def cma_paths():
    process = process_of(os.getpid())
    return CMAPath(process, LEAST_BYTES), CMAPath(process, LEAST_BYTES)


async def ucx_paths():
    from dask_fabric.paths.ucx import local as ucx
    from dask_fabric.paths.ucx.endpoint import UCXPath

    settings = config.load()
    await ucx.find(settings.paths.ucx, insists=True)
    local, reason = ucx.local_ucx(settings.paths.ucx, insists=True)
    assert local is not None, reason
    tokens = [1 + secrets.randbits(62) for _ in range(2)]
    return tuple(UCXPath(own, theirs, local.address) for own, theirs in (tokens, tokens[::-1]))


async def ofi_paths():
    from dask_fabric.paths.ofi import local as ofi
    from dask_fabric.paths.ofi.endpoint import OFIPath

    with dask.config.set(ofi_settings()):
        settings = config.load().paths.ofi
    await ofi.find(settings, insists=True)
    local, reason = ofi.local_ofi(settings, insists=True)
    assert local is not None, reason
    return tuple(OFIPath(local.facts, LEAST_BYTES) for _ in range(2))


async def shm_paths():
    exchange = shm.of_process()
    exchange.attach(exchange.id)  # both ends are of this process
    while not files.has_origin(exchange.id):
        await asyncio.sleep(0.001)
    return tuple(SHMPath(exchange.id, exchange.attach, LEAST_BYTES) for _ in range(2))


async def file_paths():
    loop = asyncio.get_running_loop()
    return file_path(loop), file_path(loop)


async def lanes_paths():
    loop = asyncio.get_running_loop()
    paths = [LanesPath(loop, bytes(16), 8, LEAST_BYTES) for _ in range(2)]
    for number in range(3):
        near, far = socket.socketpair()
        pair = new_channel(near, False), new_channel(far, True)
        await asyncio.gather(*(channel.open() for channel in pair))
        for path, channel in zip(paths, pair, strict=True):
            path.new_lane(number, 1, detach(channel))
    return tuple(paths)


# A new path is one line here.
PATHS = {
    "cma": cma_paths,
    "shm": shm_paths,
    "ucx": ucx_paths,
    "ofi": ofi_paths,
    "lanes": lanes_paths,
    "file": file_paths,
}


@pytest.fixture(params=PATHS)
def path_name(request) -> str:
    if request.param == "ucx":
        from tests.conftest import ucx_libraries

        if not ucx_libraries():
            pytest.skip("no UCX on this host")
    if request.param == "ofi":
        ofi_settings()
    return request.param


def new_channel(sock: socket.socket, server_side: bool, **settings) -> Channel:
    sock.setblocking(False)
    loaded = replace(config.load(), **settings)
    return Channel(
        asyncio.get_running_loop(),
        PlainTransport(sock, loaded.stream_bulk_bytes),
        Handshake(Hello(scheme="fabric"), server_side=server_side),
        loaded,
    )


@pytest_asyncio.fixture
async def joined(path_name) -> AsyncIterator[Callable]:
    """An async context manager: two open channels that are joined by the path."""

    @contextlib.asynccontextmanager
    async def opened(**settings):
        near, far = socket.socketpair()
        pair = new_channel(near, False, **settings), new_channel(far, True, **settings)
        try:
            await asyncio.gather(*(channel.open() for channel in pair))
            for channel, path in zip(pair, await PATHS[path_name](), strict=True):
                channel.use(path)
            yield pair
        finally:
            for channel in pair:
                channel.abort()

    yield opened


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left(path_name):
    """Check that memory, files and jobs are as before, and that nothing is mapped at NULL.

    Old UCX replaces calls of the C library by its own (openucx/ucx#8820): the other paths must
    work in a process that has loaded it.
    """
    if path_name == "shm":
        shm.of_process()
        files.configure(is_enabled=True, threshold_bytes=LEAST_BYTES, most_bytes=4 << 30)
        pool.trim(0)  # idle slabs that lie elsewhere are handed out, too
    before = leftovers()
    yield
    for _ in range(1000):
        if leftovers() <= before:
            break
        await asyncio.sleep(0.01)
    assert leftovers() <= before
    assert lowest_mapping() >= 1 << 16
    files.configure(is_enabled=False, threshold_bytes=LEAST_BYTES, most_bytes=0)


def lowest_mapping() -> int:
    """The lowest address at which this process has memory."""
    with open("/proc/self/maps") as maps:
        return int(maps.readline().split("-")[0], 16)


def leftovers() -> tuple[int, int, list[str]]:
    """The pool's memory in use, the mappings, and the files of the toy path."""
    toys = glob.glob(f"{FOLDER}/dask-fabric-toy-*")
    return pool.statistics()["in_use_bytes"], files.statistics()["mapped_bytes"], toys

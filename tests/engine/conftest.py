"""Two channels, end to end, in one loop."""

import asyncio
import contextlib
import os
import socket
import stat
import time
from dataclasses import replace

import pytest

from dask_fabric import config
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.transport import PlainTransport
from dask_fabric.jobs import completions
from dask_fabric.paths.cma.endpoint import CMAPath
from dask_fabric.paths.cma.process import Secret, process_of
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello


def tcp_pair():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def unix_pair():
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


def new_channel(sock, server_side, negotiator=None, **settings):
    loaded = replace(config.load(), **settings)
    return Channel(
        asyncio.get_running_loop(),
        PlainTransport(sock, loaded.stream_bulk_bytes),
        Handshake(Hello(scheme="fabric+tcp"), server_side=server_side),
        loaded,
        negotiator,
    )


def cma_path(process=None, threshold_bytes=None):
    """A path to a process of this host, by default to this one."""
    least_bytes = threshold_bytes or config.load().paths.cma.threshold_bytes
    return CMAPath(process or process_of(os.getpid()), least_bytes)


def sealed_cma_paths(secrets, threshold_bytes):
    """The two paths of a connection over TCP: each side has a secret for it."""
    return [
        CMAPath(process_of(os.getpid()), threshold_bytes, own, theirs.address, theirs.nonce)
        for own, theirs in (secrets, secrets[::-1])
    ]


def fd_of(channel):
    for fd in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(int(fd)).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(int(fd)))
        except OSError:  # that of the listing itself
            continue
        with sock:
            if sock.family == socket.AF_INET and sock.getsockname() == channel.local_sockname:
                return int(fd)
    raise AssertionError("the channel has no socket")


def low_water_bytes(fd):
    """The number of bytes from which on the socket is readable."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.fixture
def quarantined():
    """A function that counts the jobs of this test in quarantine.

    Those of tests before are given time to end. A library may never end some of them.
    """
    deadline = time.monotonic() + 2
    while completions.reap() and time.monotonic() < deadline:
        time.sleep(0.001)
    before = completions.statistics()["quarantined_count"]
    return lambda: completions.statistics()["quarantined_count"] - before


@pytest.fixture
def channels():
    """An async context manager that gives two opened channels, and takes settings."""

    @contextlib.asynccontextmanager
    async def opened(**settings):
        near, far = tcp_pair()
        pair = new_channel(near, False, **settings), new_channel(far, True, **settings)
        try:
            await asyncio.gather(*(channel.open() for channel in pair))
            yield pair
        finally:
            for channel in pair:
                channel.abort()

    return opened


@pytest.fixture(params=[tcp_pair, unix_pair])
def cma_pair(request):
    """An async context manager: two channels that may read this process's memory."""

    @contextlib.asynccontextmanager
    async def opened(threshold_bytes=None, **settings):
        near, far = request.param()
        opened.near_fd = near.fileno()
        pair = new_channel(near, False, **settings), new_channel(far, True, **settings)
        try:
            await asyncio.gather(*(channel.open() for channel in pair))
            if request.param is tcp_pair:
                least_bytes = threshold_bytes or config.load().paths.cma.threshold_bytes
                paths = sealed_cma_paths((Secret(), Secret()), least_bytes)
            else:
                paths = [cma_path(threshold_bytes=threshold_bytes) for _ in pair]
            for channel, path in zip(pair, paths, strict=True):
                channel.use(path)
            yield pair
        finally:
            for channel in pair:
                channel.abort()

    return opened

"""Helpers for the tests of offers: memory, waiting, and hand-made records."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import socket
import struct
import time

import numpy as np

from .conftest import cma_path, new_channel, unix_pair

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE, REQUEST, FRAMES, PATHS = range(1, 8)
INLINE, BULK = 294_912, 20_004_864  # whole pages: copied by the loop, and by the engine
PATIENCE_SECONDS = 20

libc = ctypes.CDLL(None, use_errno=True)


async def receive(channel):
    return await asyncio.wait_for(receive_patiently(channel), PATIENCE_SECONDS)


async def receive_patiently(channel):
    return channel.receive_nowait() or await channel.receive()


async def until(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def numbers(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, "u1")


class Region:
    """Memory that can be made unreadable although a view of it exists."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.map = mmap.mmap(-1, nbytes)
        self.view = np.frombuffer(self.map, "u1")
        self.view[:] = numbers(nbytes)

    def protect(self, protection: int, begin: int = 0) -> None:
        address = ctypes.c_void_p(self.view.ctypes.data + begin)
        assert libc.mprotect(address, ctypes.c_size_t(self.nbytes - begin), protection) == 0

    @contextlib.contextmanager
    def unreadable(self, begin: int = 0):
        self.protect(0, begin)
        try:
            yield
        finally:
            self.protect(mmap.PROT_READ | mmap.PROT_WRITE, begin)


@contextlib.asynccontextmanager
async def attacked(path=None, **settings):
    """A channel that may read this process, and the plain socket of its peer."""
    near, far = unix_pair()
    plain = new_channel(near, False)
    channel = new_channel(far, True, **settings)
    await asyncio.gather(plain.open(), channel.open())
    channel.use(path or cma_path())
    socket_of_peer = socket.socket(fileno=os.dup(near.fileno()))
    asyncio.get_running_loop().remove_reader(near)
    plain._forked()  # it lets go of its socket
    try:
        yield channel, socket_of_peer
    finally:
        channel.abort()
        socket_of_peer.close()


def offer(sequence, nbytes, address):
    return (
        PREFIX.pack(MESSAGE, 0, 0, 1, 0, sequence)
        + ENTRY.pack(nbytes, 1, 0, 0, 8)
        + struct.pack("<Q", address)
    )

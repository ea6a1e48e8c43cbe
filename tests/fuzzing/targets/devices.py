"""Device memory that arrives in chunks of host memory."""

from __future__ import annotations

import asyncio
import functools
import struct
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from dask_fabric import config
from dask_fabric.comm.device import staging_receive
from dask_fabric.comm.device import staging_send as staging
from dask_fabric.errors import FabricError

from ..pieces import Input, part
from ..registry import target

_CHUNK = struct.Struct("<BIQQ")  # of `staging.CHUNK`, what follows the mark


class Inline(ThreadPoolExecutor):
    """Runs everything at once, in this thread: an input does the same each time."""

    def submit(self, call, /, *args) -> Future:
        future: Future = Future()
        try:
            future.set_result(call(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


@functools.cache
def _environment() -> tuple:
    loop = asyncio.new_event_loop()
    executor: Executor = Inline(1)
    loop.set_default_executor(executor)
    return loop, config.load()


def _chunk(index: int, nbytes: int, offset: int, sent_bytes: int) -> bytes:
    fields = _CHUNK.pack(staging.CHUNK_KIND, index, nbytes, offset)
    return part(fields) + struct.pack("<HH", 1, sent_bytes)


def _message(indexes: list[int], sizes: list[int]) -> bytes:
    fields = struct.pack(f"<BI{len(indexes)}I", staging.MESSAGE_KIND, len(indexes), *indexes)
    return part(fields + b"\x80") + struct.pack(f"<H{len(sizes)}H", len(sizes), *sizes)


_FIRST = _chunk(0, 60_000, 0, 30_000) + _chunk(0, 60_000, 30_000, 30_000)
_WHOLE = _FIRST + _chunk(2, 10, 0, 10)


@target(
    [
        _WHOLE + _message([0, 2], [5]),
        _FIRST + _message([0, 1], [100]),
        _message([0, 1], [0, 7]) + _message([], []),
        _chunk(1, 1 << 40, 0, 1) + _message([1], [3]),
    ],
    [struct.pack("<I", staging.MESSAGE_KIND), struct.pack("<Q", 30_000), struct.pack("<I", 2)],
    share=1,
)
def device_chunks(data: bytes) -> None:
    """Chunks of device frames, and the message that they belong to."""
    loop, settings = _environment()
    loop.run_until_complete(_receive(Input(data), settings))


async def _receive(given: Input, settings) -> None:
    incoming = staging_receive.Incoming(settings)
    try:
        while given:
            header = staging.MARK + given.part()
            sizes = [given.number(2) for _ in range(given.number(2) % 8)]
            frames = [memoryview(bytearray(size)) for size in sizes]
            await incoming.receive(header, frames, True)
    except FabricError:
        incoming.forget()
        raise

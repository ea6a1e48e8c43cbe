"""Device memory staged in host memory, where no path carries it from device to device: sending.

A frame is sent in chunks: ordinary messages that precede the one they belong to. Each side copies
one chunk while another is in flight. The format is in ``docs/wire-protocol.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from dask_fabric.comm.serialize import dlpack
from dask_fabric.engine import backlog
from dask_fabric.memory import arrays, device
from dask_fabric.memory.device import Runtime, Span, StagedFrame

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel

# The serializers, in this order, if this process has device memory and the caller names none.
FAMILIES = ("cuda", "dask", dlpack.FAMILY, "pickle")
# A table of payloads in the codec's format, with a count that the codec never writes.
MARK = b"\xc1\0\0\0\0"
CHUNK = struct.Struct("<5sBIQQ")  # mark, kind, index of the frame, its bytes, offset in it
MESSAGE = struct.Struct("<5sBI")  # mark, kind, count of indexes; these (u32); the codec's header
CHUNK_KIND, MESSAGE_KIND = 1, 2
# Frames up to this size go inside their message.
_INLINE_BYTES = 64 << 10
# Chunks that are copied from or to the device at the same time.
AHEAD_COUNT = 3
# Backpressure: so many chunks may wait in host memory for the peer.
BACKLOG_COUNT = 4
# After so long without progress the next chunk is queued nevertheless: the peer may itself be in a
# `write`, and read only afterwards.
PATIENCE_SECONDS = 0.1
# What a frame in chunks counts besides its bytes, for its Python objects.
FRAME_COST_BYTES = 1 << 10


class Source(Protocol):
    """A frame that belongs on a device, to be sent from host memory."""

    nbytes: int

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Give a part of the frame in host memory; may block."""


class _HostSource:
    """A frame that belongs on a device, but is in host memory already."""

    def __init__(self, frame: StagedFrame) -> None:
        self._memory = frame.data
        self.nbytes = self._memory.nbytes

    def read(self, offset: int, nbytes: int) -> memoryview:
        return self._memory[offset : offset + nbytes]


class _DeviceSource:
    """A frame in device memory."""

    def __init__(self, runtime: Runtime, frame: Any, span: Span) -> None:
        self._runtime = runtime
        self._frame = frame  # keeps the memory
        self._span = span
        self.nbytes = span.nbytes

    def read(self, offset: int, nbytes: int) -> memoryview:
        if not nbytes:
            return memoryview(b"")
        slab = arrays.new_array(nbytes)
        pin(self._runtime, slab)
        memory = memoryview(slab)
        self._runtime.copy_to_host(self._span, offset, memory).wait()
        return memory


def pin(runtime: Runtime, memory: Any) -> None:
    """Pin memory of the pool, if possible: without it the copy is only slower."""
    with contextlib.suppress(MemoryError):
        arrays.pin(memory, runtime.pin)


def sources_of(frames: list) -> dict[int, Source]:
    """Give the frames that belong on a device, by index; blocks until they are computed."""
    runtime = device.current()
    sources: dict[int, Source] = {}
    for index, frame in enumerate(frames):
        if isinstance(frame, StagedFrame):
            sources[index] = _HostSource(frame)
        elif runtime is not None and (span := device.span_of(frame)) is not None:
            sources[index] = _DeviceSource(runtime, frame, span)
    on_device = [frames[i] for i, source in sources.items() if isinstance(source, _DeviceSource)]
    if runtime is not None and on_device:
        runtime.await_producers(on_device)
    return sources


class Outgoing:
    """The staged frames that one comm sends.

    Parameters
    ----------
    channel : dask_fabric.engine.channel.Channel
        The comm's channel.
    chunk_bytes : int
        The size of a chunk.
    """

    def __init__(self, channel: Channel, chunk_bytes: int) -> None:
        self._channel = channel
        self._chunk_bytes = chunk_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()  # chunks of different messages must not mix
        self.frame_count = self.nbytes = 0

    async def send(self, header: Any, frames: list, sources: Mapping[int, Source]) -> int:
        """Send a message; waits for the device, and for the peer as in `_await_room`.

        Parameters
        ----------
        header, frames : bytes-like and list
            From the codec.
        sources : mapping of int to Source
            The result of `sources_of` for these frames.

        Returns
        -------
        int
            Bytes of the message, with its chunks.

        Raises
        ------
        MessageTooLargeError
            The message exceeds the peer's limits; nothing was sent.
        """
        indexes = struct.pack(f"<{len(sources)}I", *sources)
        header = b"".join((MESSAGE.pack(MARK, MESSAGE_KIND, len(sources)), indexes, header))
        staged_bytes = sum(source.nbytes for source in sources.values())
        host_bytes = sum(memoryview(f).nbytes for i, f in enumerate(frames) if i not in sources)
        chunked = {i: source for i, source in sources.items() if source.nbytes > _INLINE_BYTES}
        nbytes = len(header) + host_bytes + staged_bytes + len(chunked) * FRAME_COST_BYTES
        self._channel.check_limits(len(frames), len(header), nbytes)
        async with self._lock:
            sent_bytes = await self._send_chunks(chunked)
            if len(chunked) < len(sources):
                kept = await self._loop.run_in_executor(None, _kept, frames, sources, chunked)
            else:  # nothing to copy: a thread would only cost time
                kept = _kept(frames, sources, chunked)
            sent_bytes += self._channel.send(header, kept)
        self.frame_count += len(sources)
        self.nbytes += staged_bytes
        return sent_bytes

    async def _send_chunks(self, sources: Mapping[int, Source]) -> int:
        pieces = self._pieces(sources)
        ahead: deque = deque()
        sent_bytes = 0
        try:
            while True:
                await self._await_room()
                for head, source, offset in islice(pieces, AHEAD_COUNT - len(ahead)):
                    nbytes = min(self._chunk_bytes, source.nbytes - offset)
                    reading = self._loop.run_in_executor(None, source.read, offset, nbytes)
                    ahead.append((head, reading))
                if not ahead:
                    return sent_bytes
                head, reading = ahead.popleft()
                sent_bytes += self._channel.send(head, [await reading])
        finally:
            for _, reading in ahead:
                reading.cancel()

    async def _await_room(self) -> None:
        """Wait while `BACKLOG_COUNT` chunks are queued and the peer makes progress.

        This bounds host memory. Two peers that both write before they read would deadlock, so a
        chunk waits `PATIENCE_SECONDS` at most without progress.
        """
        limit_bytes = BACKLOG_COUNT * self._chunk_bytes
        await backlog.until_room(self._channel, limit_bytes, PATIENCE_SECONDS)

    def _pieces(self, sources: Mapping[int, Source]) -> Iterator[tuple[bytes, Source, int]]:
        for index, source in sources.items():
            for offset in range(0, source.nbytes, self._chunk_bytes):
                head = CHUNK.pack(MARK, CHUNK_KIND, index, source.nbytes, offset)
                yield head, source, offset


def _kept(frames: list, sources: Mapping[int, Source], chunked: Mapping[int, Source]) -> list:
    """Give the frames that go inside their message, all in host memory."""
    return [
        sources[index].read(0, sources[index].nbytes) if index in sources else frame
        for index, frame in enumerate(frames)
        if index not in chunked
    ]

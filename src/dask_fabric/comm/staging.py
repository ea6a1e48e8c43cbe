"""Device memory by way of host memory, where no path takes it from device to device.

A frame travels in chunks: ordinary messages that go before the one they belong to. Each side
copies one chunk while another is on its way. The format is in ``docs/wire-protocol.md``.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

from dask_fabric.config import Settings
from dask_fabric.errors import LimitError, ProtocolError, UnavailableError
from dask_fabric.memory import arrays, device
from dask_fabric.memory.device import Runtime, StagedFrame

# In this order, where this process has device memory and the caller names none.
FAMILIES = ("cuda", "dask", "pickle")
# The codec's mark of a table with a count of payloads that the codec never writes.
MARK = b"\xc1\0\0\0\0"
_CHUNK = struct.Struct("<5sBIQQ")  # mark, kind, index of the frame, its bytes, offset in it
_MESSAGE = struct.Struct("<5sBI")  # mark, kind, count of indexes; these (u32); the codec's header
_CHUNK_KIND, _MESSAGE_KIND = 1, 2
# Up to this a frame goes within its message.
_INLINE_BYTES = 64 << 10
# Copied ahead of the stream, or behind it.
_AHEAD_COUNT = 3
# Of a frame's Python objects.
_FRAME_COST_BYTES = 1 << 10


class Source(Protocol):
    """A frame that is to be sent from host memory."""

    nbytes: int

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Give a part of it in host memory; may block."""


class _HostSource:
    """A frame that belongs on a device and is in host memory."""

    def __init__(self, frame: StagedFrame) -> None:
        self._memory = memoryview(frame)
        self.nbytes = self._memory.nbytes

    def read(self, offset: int, nbytes: int) -> memoryview:
        return self._memory[offset : offset + nbytes]


class _DeviceSource:
    """A frame in device memory."""

    def __init__(self, runtime: Runtime, frame: Any) -> None:
        self._runtime = runtime
        self._frame = frame  # keeps the memory
        self._span = runtime.span_of(frame)
        self.nbytes = self._span.nbytes

    def read(self, offset: int, nbytes: int) -> memoryview:
        if not nbytes:
            return memoryview(b"")
        slab = arrays.new_array(nbytes)
        _pin(self._runtime, slab)
        memory = memoryview(slab)
        self._runtime.copy_to_host(self._span, offset, memory).wait()
        return memory


def _pin(runtime: Runtime, memory: Any) -> None:
    """Pin memory of the pool, where it can be: else the copy is slower, and not wrong."""
    try:
        arrays.pin(memory, runtime.pin)
    except MemoryError:
        pass


def sources_of(frames: list) -> dict[int, Source]:
    """Make ready what of *frames* belongs on a device, by index; blocks while it is computed."""
    runtime = device.current()
    sources: dict[int, Source] = {}
    for index, frame in enumerate(frames):
        if isinstance(frame, StagedFrame):
            sources[index] = _HostSource(frame)
        elif device.span_of(frame) is not None:
            sources[index] = _DeviceSource(runtime, frame)
    on_device = [frames[i] for i, source in sources.items() if isinstance(source, _DeviceSource)]
    if on_device:
        runtime.await_producers(on_device)
    return sources


class Outgoing:
    """What one comm sends of device memory.

    Parameters
    ----------
    channel : object
        The comm's.
    chunk_bytes : int
        The most of one frame that goes in one piece.
    """

    def __init__(self, channel: Any, chunk_bytes: int) -> None:
        self._channel = channel
        self._chunk_bytes = chunk_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()  # the chunks of one message follow each other
        self.frame_count = self.nbytes = 0

    async def send(self, header: Any, frames: list, sources: Mapping[int, Source]) -> int:
        """Send a message; waits for the device, never for the peer.

        Parameters
        ----------
        header, frames : bytes-like and list
            Of the codec.
        sources : mapping of int to Source
            What `sources_of` the frames gives.

        Returns
        -------
        int
            Bytes of the message, with its chunks.

        Raises
        ------
        MessageTooLargeError
            The peer refuses it; nothing was sent.
        """
        indexes = struct.pack(f"<{len(sources)}I", *sources)
        header = b"".join((_MESSAGE.pack(MARK, _MESSAGE_KIND, len(sources)), indexes, header))
        staged_bytes = sum(source.nbytes for source in sources.values())
        host = [memoryview(f).nbytes for i, f in enumerate(frames) if i not in sources]
        nbytes = len(header) + sum(host) + staged_bytes
        self._channel.check_limits(len(frames), len(header), nbytes)
        chunked = {i: source for i, source in sources.items() if source.nbytes > _INLINE_BYTES}
        async with self._lock:
            sent_bytes = await self._send_chunks(chunked)
            kept = await self._loop.run_in_executor(None, _kept, frames, sources, chunked)
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
                for head, source, offset in islice(pieces, _AHEAD_COUNT - len(ahead)):
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

    def _pieces(self, sources: Mapping[int, Source]) -> Iterator[tuple[bytes, Source, int]]:
        for index, source in sources.items():
            for offset in range(0, source.nbytes, self._chunk_bytes):
                head = _CHUNK.pack(MARK, _CHUNK_KIND, index, source.nbytes, offset)
                yield head, source, offset


def _kept(frames: list, sources: Mapping[int, Source], chunked: Mapping[int, Source]) -> list:
    """Give the frames that go within their message, all in host memory."""
    return [
        sources[index].read(0, sources[index].nbytes) if index in sources else frame
        for index, frame in enumerate(frames)
        if index not in chunked
    ]


class _Arriving:
    """A frame of which chunks arrive; it gets memory with the first.

    Parameters
    ----------
    nbytes : int
    runtime : Runtime or None
        None for host memory.
    """

    def __init__(self, nbytes: int, runtime: Runtime | None) -> None:
        self.nbytes = nbytes
        self.received_bytes = 0
        self.frame: Any = None
        self._runtime = runtime
        self._lock = threading.Lock()

    def place(self, offset: int, memory: memoryview) -> None:
        """Copy one chunk to where it belongs; blocks."""
        with self._lock:
            if self.frame is None:
                self._allocate()
        if self._runtime is None:
            self.frame[offset : offset + memory.nbytes] = memory
        else:
            _pin(self._runtime, memory.obj)
            self._runtime.copy_to_device(memory, self._span, offset).wait()

    def _allocate(self) -> None:
        if self._runtime is not None:
            try:
                frame = self._runtime.allocate(self.nbytes)
                self._runtime.await_producers([frame])
            except MemoryError:
                self._runtime = None  # host memory for now: whoever reads may have made room
            else:
                self._span = self._runtime.span_of(frame)
                self.frame = frame
                return
        self.frame = StagedFrame.over(arrays.new_array(self.nbytes))


class Incoming:
    """What one comm receives of device memory; nothing that the peer says is believed.

    Parameters
    ----------
    settings : dask_fabric.config.Settings
        Its limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._bytes_limit = settings.message_bytes_limit
        self._count_limit = settings.frame_count_limit
        self._loop = asyncio.get_running_loop()
        self._forget()
        self.frame_count = self.nbytes = 0

    def _forget(self) -> None:
        self._arriving: dict[int, _Arriving] = {}  # in the order of the frames
        self._copies: deque = deque()
        self._claimed_bytes = 0

    async def receive(self, header: Any, frames: list, deserialize: bool) -> tuple | None:
        """Take a message of this module's.

        Parameters
        ----------
        header, frames : bytes-like and list of memoryview
        deserialize : bool
            Whether frames come to lie on a device, if this process has one.

        Returns
        -------
        tuple of (bytes-like, list) or None
            Header and frames for the codec; None after a chunk. What is not on a device though it
            belongs there is a `StagedFrame`.

        Raises
        ------
        ProtocolError, LimitError
            The comm is of no use any more.
        """
        kind = header[len(MARK)] if len(header) > len(MARK) else 0
        if kind == _CHUNK_KIND and len(header) == _CHUNK.size and len(frames) == 1:
            runtime = device.current() if deserialize else None
            await self._take_chunk(*_CHUNK.unpack(header)[2:], frames[0], runtime)
            return None
        if kind != _MESSAGE_KIND or len(header) < _MESSAGE.size:
            raise ProtocolError("protocol violation: a malformed header about device memory")
        return await self._complete(header, frames)

    async def _take_chunk(
        self, index: int, nbytes: int, offset: int, memory: memoryview, runtime: Runtime | None
    ) -> None:
        arriving = self._arriving.get(index)
        if offset == 0:
            arriving = self._begin(index, nbytes, runtime)
        elif arriving is None or arriving.nbytes != nbytes or arriving.received_bytes != offset:
            raise ProtocolError(f"protocol violation: a chunk of frame {index} out of its order")
        if not 0 < memory.nbytes <= nbytes - offset:
            raise ProtocolError(
                f"protocol violation: a chunk of {memory.nbytes} bytes at {offset} of frame "
                f"{index}, which has {nbytes}"
            )
        arriving.received_bytes += memory.nbytes
        while len(self._copies) >= _AHEAD_COUNT:
            await self._copies.popleft()
        self._copies.append(self._loop.run_in_executor(None, arriving.place, offset, memory))

    def _begin(self, index: int, nbytes: int, runtime: Runtime | None) -> _Arriving:
        self._check_whole()
        if self._arriving and index <= next(reversed(self._arriving)):
            raise ProtocolError(f"protocol violation: chunks of frame {index} out of their order")
        if index >= self._count_limit:
            raise _excess("table", index + 1, self._count_limit, "frames")
        self._claimed_bytes += nbytes + _FRAME_COST_BYTES
        if self._claimed_bytes > self._bytes_limit + _FRAME_COST_BYTES:
            raise _excess("message", self._claimed_bytes, self._bytes_limit, "message")
        arriving = self._arriving[index] = _Arriving(nbytes, runtime)
        return arriving

    def _check_whole(self) -> None:
        """Raise unless the frame that was begun last is whole; those before it are."""
        index = next(reversed(self._arriving), None)
        if index is not None and self._arriving[index].received_bytes != (
            self._arriving[index].nbytes
        ):
            raise ProtocolError(f"protocol violation: chunks of frame {index} are missing")

    async def _complete(self, header: Any, frames: list) -> tuple[Any, list]:
        marked, header = _parse_message(header)
        total_count = len(frames) + len(self._arriving)
        self._check_whole()
        is_ascending = all(a < b for a, b in zip(marked, marked[1:], strict=False))
        if not is_ascending or (marked and marked[-1] >= total_count):
            raise ProtocolError("protocol violation: malformed indexes of device frames")
        if not self._arriving.keys() <= set(marked):
            raise ProtocolError("protocol violation: chunks of a frame that is not mentioned")
        for frame in frames:
            self._claimed_bytes += frame.nbytes
        if self._claimed_bytes > self._bytes_limit + len(self._arriving) * _FRAME_COST_BYTES:
            raise _excess("message", self._claimed_bytes, self._bytes_limit, "message")
        while self._copies:
            await self._copies.popleft()
        merged = self._merge(frames, set(marked), total_count)
        self.frame_count += len(marked)
        self.nbytes += sum(merged[index].nbytes for index in marked)
        self._forget()
        return header, merged

    def _merge(self, frames: list, marked: set[int], total_count: int) -> list:
        rest = iter(frames)
        merged = []
        for index in range(total_count):
            if index in self._arriving:
                merged.append(self._arriving[index].frame)
            else:
                frame = next(rest)
                merged.append(StagedFrame.over(frame) if index in marked else frame)
        return merged


def _parse_message(header: Any) -> tuple[tuple[int, ...], Any]:
    """Give the indexes of device frames, and the codec's header."""
    count = _MESSAGE.unpack_from(header)[2]
    end = _MESSAGE.size + 4 * count
    if end > len(header):
        raise ProtocolError(f"protocol violation: {count} device frames in {len(header)} bytes")
    return struct.unpack_from(f"<{count}I", header, _MESSAGE.size), header[end:]


async def to_device(frames: list) -> list:
    """Put what belongs on a device there.

    Raises
    ------
    UnavailableError
        This process has none; the message says what to do.
    MemoryError
        The device does not have that much.
    """
    if not any(isinstance(frame, StagedFrame) for frame in frames):
        return frames
    runtime = device.current()
    if runtime is None:
        raise UnavailableError(
            "the message holds memory of a GPU, and this process works with none: turn it into "
            "host memory before it is sent (for instance by array.map_blocks(cupy.asnumpy)), or "
            "run this process where a GPU is and import cupy in it (fabric.gpu.enabled in Dask's "
            "configuration must not be false)"
        )
    return await asyncio.get_running_loop().run_in_executor(None, _upload, runtime, frames)


def _upload(runtime: Runtime, frames: list) -> list:
    placed = [runtime.allocate(f.nbytes) if isinstance(f, StagedFrame) else f for f in frames]
    pairs = [(new, old) for new, old in zip(placed, frames, strict=True) if new is not old]
    runtime.await_producers([new for new, _ in pairs])
    copies = [
        runtime.copy_to_device(memoryview(old), runtime.span_of(new), 0)
        for new, old in pairs
        if old.nbytes
    ]
    for copy in copies:
        copy.wait()
    return placed


def _excess(what: str, size: int, limit: int, key: str) -> LimitError:
    return LimitError(
        f"a {what} of {size} is above the limit of {limit} "
        f"(fabric.limits.{key} in the configuration of the receiver)"
    )

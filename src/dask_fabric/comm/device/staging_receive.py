"""Device memory staged in host memory: receiving. See `dask_fabric.comm.device.staging_send`."""

from __future__ import annotations

import asyncio
import itertools
import struct
import threading
from collections import deque
from typing import Any

from dask_fabric.comm.device.staging_send import (
    AHEAD_COUNT,
    CHUNK,
    CHUNK_KIND,
    FRAME_COST_BYTES,
    MARK,
    MESSAGE,
    MESSAGE_KIND,
    pin,
)
from dask_fabric.config import Settings
from dask_fabric.errors import UnavailableError
from dask_fabric.memory import arrays, device
from dask_fabric.memory.device import Runtime, StagedFrame, known_span
from dask_fabric.wire.records import excess, violation

# A frame is allocated once 1/16 of it has arrived: a few bytes must not claim a whole device.
_CLAIMING_PART = 16


class _Arriving:
    """A frame whose chunks are arriving.

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
        self._waiting: list[tuple[int, memoryview]] = []

    def arrived(self, offset: int, memory: memoryview) -> list[tuple[int, memoryview]]:
        """Add one chunk; give the chunks to place now."""
        self.received_bytes += memory.nbytes
        self._waiting.append((offset, memory))
        if self.received_bytes * _CLAIMING_PART < self.nbytes:
            return []
        waiting, self._waiting = self._waiting, []
        return waiting

    def place(self, offset: int, memory: memoryview) -> None:
        """Copy one chunk to where it belongs; blocks."""
        with self._lock:
            if self.frame is None:
                self._allocate()
        if self._runtime is None:
            self.frame[offset : offset + memory.nbytes] = memory
        else:
            pin(self._runtime, memory.obj)
            self._runtime.copy_to_device(memory, self._span, offset).wait()

    def _allocate(self) -> None:
        if self._runtime is not None:
            try:
                frame = self._runtime.allocate(self.nbytes)
                self._runtime.await_producers([frame])
            except MemoryError:
                self._runtime = None  # host memory for now: the reader may find room later
            else:
                self._span = known_span(self._runtime, frame)
                self.frame = frame
                return
        self.frame = StagedFrame.over(arrays.new_array(self.nbytes))


class Incoming:
    """The staged frames that one comm receives. Every claim of the peer is checked.

    Parameters
    ----------
    settings : dask_fabric.config.Settings
        Its limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._bytes_limit = settings.message_bytes_limit
        self._count_limit = settings.frame_count_limit
        self._loop = asyncio.get_running_loop()
        self.forget()
        self.frame_count = self.nbytes = 0

    def forget(self) -> None:
        """Drop the chunks of an incomplete message."""
        self._arriving: dict[int, _Arriving] = {}  # in the order of the frames
        self._copies: deque = deque()
        self._claimed_bytes = 0

    async def receive(self, header: Any, frames: list, deserialize: bool) -> tuple | None:
        """Process a message whose header begins with `MARK`.

        Parameters
        ----------
        header, frames : bytes-like and list of memoryview
        deserialize : bool
            Whether to place frames on this process's device, if it has one.

        Returns
        -------
        tuple of (bytes-like, list) or None
            Header and frames for the codec; None after a chunk. A frame that belongs on a device,
            but is in host memory, is a `StagedFrame`.

        Raises
        ------
        ProtocolError, LimitError
            The peer broke the protocol: the comm must be closed.
        """
        kind = header[len(MARK)] if len(header) > len(MARK) else 0
        if kind == CHUNK_KIND and len(header) == CHUNK.size and len(frames) == 1:
            runtime = device.current() if deserialize else None
            _, _, index, nbytes, offset = CHUNK.unpack(header)
            await self._take_chunk(index, nbytes, offset, frames[0], runtime)
            return None
        if kind != MESSAGE_KIND or len(header) < MESSAGE.size:
            raise violation("a malformed header about device memory")
        return await self._complete(header, frames)

    async def _take_chunk(
        self, index: int, nbytes: int, offset: int, memory: memoryview, runtime: Runtime | None
    ) -> None:
        arriving = self._arriving.get(index)
        if offset == 0:
            arriving = self._begin(index, nbytes, runtime)
        elif arriving is None or arriving.nbytes != nbytes or arriving.received_bytes != offset:
            raise violation(f"a chunk of frame {index} out of its order")
        if not 0 < memory.nbytes <= nbytes - offset:
            raise violation(
                f"a chunk of {memory.nbytes} bytes at {offset} of frame {index}, which has {nbytes}"
            )
        for placed in arriving.arrived(offset, memory):
            while len(self._copies) >= AHEAD_COUNT:
                await self._copies.popleft()
            self._copies.append(self._loop.run_in_executor(None, arriving.place, *placed))

    def _begin(self, index: int, nbytes: int, runtime: Runtime | None) -> _Arriving:
        self._check_whole()
        if self._arriving and index <= next(reversed(self._arriving)):
            raise violation(f"chunks of frame {index} out of their order")
        if index >= self._count_limit:
            raise excess("table", index + 1, self._count_limit, "frames")
        self._claimed_bytes += nbytes + FRAME_COST_BYTES
        if self._claimed_bytes > self._bytes_limit:
            raise excess("message", self._claimed_bytes, self._bytes_limit, "message")
        arriving = self._arriving[index] = _Arriving(nbytes, runtime)
        return arriving

    def _check_whole(self) -> None:
        """Raise unless the last frame begun is whole; earlier ones were checked before."""
        index = next(reversed(self._arriving), None)
        if index is not None and self._arriving[index].received_bytes != (
            self._arriving[index].nbytes
        ):
            raise violation(f"chunks of frame {index} are missing")

    async def _complete(self, header: Any, frames: list) -> tuple[Any, list]:
        marked, header = _parse_message(header)
        total_count = len(frames) + len(self._arriving)
        self._check_whole()
        is_ascending = all(a < b for a, b in itertools.pairwise(marked))
        if not is_ascending or (marked and marked[-1] >= total_count):
            raise violation("malformed indexes of device frames")
        if not self._arriving.keys() <= set(marked):
            raise violation("chunks of a frame that is not mentioned")
        for frame in frames:
            self._claimed_bytes += frame.nbytes
        if self._claimed_bytes > self._bytes_limit:
            raise excess("message", self._claimed_bytes, self._bytes_limit, "message")
        arriving, copies = self._arriving, self._copies
        self.forget()  # before anything is awaited: the comm may be aborted meanwhile
        for copy in copies:
            await copy
        placed = {index: frame.frame for index, frame in arriving.items()}
        merged = _merge(frames, placed, set(marked), total_count)
        self.frame_count += len(marked)
        self.nbytes += sum(merged[index].nbytes for index in marked)
        return header, merged


def _merge(frames: list, placed: dict, marked: set[int], total_count: int) -> list:
    """Merge frames that arrived in chunks with those inside the message, in order."""
    rest = iter(frames)
    merged = []
    for index in range(total_count):
        if index in placed:
            merged.append(placed[index])
        else:
            frame = next(rest)
            merged.append(StagedFrame.over(frame) if index in marked else frame)
    return merged


def _parse_message(header: Any) -> tuple[tuple[int, ...], Any]:
    """Give the indexes of device frames, and the codec's header."""
    count = MESSAGE.unpack_from(header)[2]
    end = MESSAGE.size + 4 * count
    if end > len(header):
        raise violation(f"{count} device frames in {len(header)} bytes")
    return struct.unpack_from(f"<{count}I", header, MESSAGE.size), header[end:]


async def to_device(frames: list) -> list:
    """Upload the frames that belong on a device.

    Raises
    ------
    UnavailableError
        This process does not use a device; the message says what to do.
    MemoryError
        The device has not enough free memory.
    """
    if not any(isinstance(frame, StagedFrame) for frame in frames):
        return frames
    runtime = device.current()
    if runtime is None:
        raise UnavailableError(
            "the message holds GPU memory, and this process does not use a GPU: convert it to "
            "host memory before it is sent (for instance by array.map_blocks(cupy.asnumpy)), or "
            "run this process where a GPU is and import cupy in it (fabric.gpu.enabled in Dask's "
            "configuration must not be false)"
        )
    return await asyncio.get_running_loop().run_in_executor(None, _upload, runtime, frames)


def _upload(runtime: Runtime, frames: list) -> list:
    placed = [runtime.allocate(f.nbytes) if isinstance(f, StagedFrame) else f for f in frames]
    pairs = [(new, old) for new, old in zip(placed, frames, strict=True) if new is not old]
    runtime.await_producers([new for new, _ in pairs])
    copies = []
    try:
        for new, old in pairs:
            if old.nbytes:
                span = known_span(runtime, new)
                copies.append(runtime.copy_to_device(memoryview(old), span, 0))
    finally:  # also after an error: copies under way still use their memory
        for copy in copies:
            copy.wait()
    return placed

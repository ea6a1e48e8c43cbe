"""The stream after the handshake: records, the connection's state, and a channel with a socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from dask_fabric import config
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.transport import PlainTransport
from dask_fabric.errors import ChannelClosedError, FabricError, ProtocolError
from dask_fabric.memory.device import StagedFrame
from dask_fabric.paths.cma.endpoint import CMAPath
from dask_fabric.paths.cma.process import process_of
from dask_fabric.paths.python_path import PythonPath
from dask_fabric.wire.connection import Connection
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.message_reader import MessageReader
from dask_fabric.wire.path import Path
from dask_fabric.wire.records import close_record, error_record, paths_record

from ..pieces import Input, cut, expand, many, part
from ..registry import target

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, REQUEST, FRAMES = 1, 2, 5, 6
CMA, DEVICE, TABLE = 1, 2, 16  # numbers of paths
HOST_KIND, CUDA_KIND = 0, 1
LIMITS = 1 << 20, 1 << 28, 1 << 20  # of header, message and frames


def message(
    sequence: int, header: bytes, frames=(), offered=(), path: int = CMA, memory: int = HOST_KIND,
    header_bytes: int | None = None,
) -> bytes:  # fmt: skip
    """Make a message; *frames* are (bytes on the wire, what `expand` makes them of)."""
    table = b"".join(ENTRY.pack(nbytes, path, memory, 0, 8) for nbytes in offered)
    table += b"".join(ENTRY.pack(nbytes, 0, 0, 0, 0) for nbytes, _ in frames)
    addresses = b"".join(struct.pack("<Q", 4096 + at) for at in range(len(offered)))
    count = len(frames) + len(offered)
    nbytes = len(header) if header_bytes is None else header_bytes
    prefix = PREFIX.pack(MESSAGE, 0, 0, count, nbytes, sequence)
    return prefix + table + addresses + header + b"".join(data for _, data in frames)


def control(kind: int, sequence: int = 0, count: int = 0) -> bytes:
    return PREFIX.pack(kind, 0, 0, count, 0, sequence)


LARGE = (70_000, many(70_000))
STREAMS = [
    message(0, b"header", [(5, b"frame"), (0, b""), (1008, many(1008))])
    + message(1, b"")
    + close_record(),
    message(0, many(80_000), [LARGE, (1, b"g")], header_bytes=80_000) + message(1, b"next"),
    message(0, b"", [], [65_536] * 3) + message(1, b"h", [(1, b"x")] * 20),
    message(0, b"", [LARGE], [65_536]) + close_record(),
    PREFIX.pack(MESSAGE, 0, 0, 6000, 0, 0) + many(6000 * ENTRY.size) + message(1, b"many"),
    message(0, b"t", [(1, b"t")]) + error_record("text") + message(1, b"after"),
    paths_record(b"\x81\xa3cma\xa2no") + message(0, b"x") + control(ACKNOWLEDGE) + control(REQUEST),
    message(0, b"d", [], [4096, 65_536], DEVICE, CUDA_KIND) + message(1, b"e"),
    PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(0, 0, CUDA_KIND, 0, 0) + message(1, b"z"),
]
WORDS = [bytes([kind]) + bytes(7) for kind in range(1, 8)]
WORDS += [ENTRY.pack(65_536, path, 0, 0, 8) for path in (CMA, TABLE)]
WORDS += [ENTRY.pack(4096, DEVICE, CUDA_KIND, 0, 8), many(1 << 16), many(1 << 17), close_record()]
WORDS += [struct.pack("<Q", number) for number in (1, 65_536, 1 << 20, 1 << 28, 1 << 63)]


class Devices:
    """Device memory that holds little: larger frames are staged."""

    @staticmethod
    def allocate(nbytes: int) -> np.ndarray:
        if nbytes > 1 << 16:
            raise MemoryError
        return np.empty(nbytes, np.uint8)

    @staticmethod
    def span_of(frame: np.ndarray) -> tuple[int, int]:
        return frame.ctypes.data, frame.nbytes

    stage = staticmethod(StagedFrame.over)


@target([bytes([choice]) + data for data in STREAMS for choice in (2, 29)], WORDS, share=4)
def records(data: bytes) -> None:
    """A stream of records, in pieces; of some, all pieces together must be read the same."""
    given = Input(data)
    choice = given.number()
    stream = expand(given.rest())
    paths = [Path("cma", CMA, 1, 8), Path("device", DEVICE, 3, 8)][: 1 + choice // 8 % 2]
    if choice & 16:
        assert _read(cut(stream, choice), paths) == _read([stream], paths)
    else:
        _read(cut(stream, choice), paths)


def _read(pieces: Iterable[bytes], paths: list[Path]) -> list:
    """Give the records of a stream so that they can be compared."""
    reader = MessageReader(*LIMITS)
    reader.open(paths, Devices)
    found = [record for piece in pieces for record in reader.receive_data(piece)]
    return [_comparable(*one) if isinstance(one, tuple) else one.kind for one in found]


def _comparable(header: bytes | memoryview, frames: list) -> tuple:
    contents = []
    for frame in frames:
        is_written = isinstance(frame, memoryview)  # neither on offer nor of a device
        contents.append(bytes(frame) if is_written else getattr(frame, "nbytes", None))
    return bytes(header), contents


class TablePath(PythonPath):
    """A path that describes frames, and whose transfers end when the script says so."""

    def __init__(self) -> None:
        super().__init__(None, "table", TABLE, 8, 1 << 16)
        self.offered = 0

    def describe_frame(self, memory: memoryview) -> bytes:
        self.offered += 1
        return struct.pack("<Q", self.offered)

    def release_frame(self, descriptor: bytes) -> None:
        self.offered -= 1


_WANT_FETCH, _WANT_ATTENTION, _WANT_END = 1, 8, 16
_CLOSED_HERE, _FAILED = 1, 2
_OFFERED = np.zeros(1 << 16, np.uint8)


class Driver:
    """One end of a connection, and what its owner does: each step is a byte of the script."""

    def __init__(self) -> None:
        self.core = Connection(*LIMITS, 2000)
        self.path = TablePath()
        self.core.opened()
        self.core.use(self.path)
        self.transfer = None
        self.steps = (
            self.read, self.read, self.read, self.look, self.send, self.end_transfer,
            self.end_transfer, self.close,
        )  # fmt: skip

    def take(self, data: bytes, step: int) -> None:
        """Store bytes of the peer, as far as they fit, then do a step."""
        while data:
            used = self.core.feed(data)
            data = data[used:]
            self.steps[step % 8](step)
            self.serve()
            if self.core.incoming.staging_is_full() or not used:
                break

    def serve(self) -> None:
        core = self.core
        if core.wants & _WANT_ATTENTION:
            core.take_notices()
        if core.wants & _WANT_FETCH and self.transfer is None:
            self.transfer = core.next_transfer()
        if core.wants & _WANT_END:
            raise ChannelClosedError("the peer has closed")

    def read(self, step: int) -> None:
        while self.core.next_message() is not None or self.core.reader.has_more_work():
            self.serve()

    def look(self, step: int) -> None:
        self.core.read_unawaited()

    def send(self, step: int) -> None:
        if self.core.local == 1:
            self.core.send(b"header", [_OFFERED] * (step // 8 % 4))
        self.core.take_outgoing(1 << (step // 8))

    def end_transfer(self, step: int) -> None:
        transfer, self.transfer = self.transfer, None
        if transfer is not None:
            error = (0, 0, errno.EFAULT, errno.ETIMEDOUT)[step // 8 % 4]
            self.core.end_transfer(transfer, error, is_stuck=error == errno.ETIMEDOUT)

    def close(self, step: int) -> None:
        self.core.close()

    def end(self, error: Exception | None) -> None:
        """End as the channel does; nothing may be left."""
        core = self.core
        core.lose_stream()
        core.end(_FAILED if error else _CLOSED_HERE, isinstance(error, ProtocolError))
        with contextlib.suppress(FabricError):
            while core.next_message() is not None:
                pass
        core.drop_unready()  # an offer that was behind them
        left = len(core.outbox), core.outbox.in_flight_bytes, core.outgoing.pending_bytes
        assert left == (0, 0, 0), left
        assert self.path.offered == 0
        assert core.next_transfer() is None


_OFFER = message(0, b"o", [], [65_536, 1 << 17], TABLE)
_FRAMES = (
    control(FRAMES, 0, 2) + ENTRY.pack(65_536, 0, 0, 0, 0) + ENTRY.pack(1 << 17, 0, 0, 0, 0)
    + many(65_536 + (1 << 17))
)  # fmt: skip
_ANSWERS = control(ACKNOWLEDGE) + control(REQUEST, 1) + close_record()


@target(
    [
        part(bytes([0, 2, 1, 3, 4]) * 4) + bytes([choice]) + data
        for data in STREAMS
        for choice in (2, 5)
    ]
    + [
        part(bytes([0, 5, 0, 3])) + b"\5" + _OFFER + message(1, b"next"),
        part(bytes([0, 0x15, 0, 0])) + b"\2" + _OFFER + _FRAMES + message(1, b"next"),
        part(bytes([0, 0x1D, 0, 3])) + b"\2" + _OFFER + _FRAMES + close_record(),
        part(bytes([0x0C, 0x14, 0xF4, 0, 7])) + b"\2" + _ANSWERS,
        part(bytes([0x0C, 0xF4, 3, 7, 3])) + b"\2" + message(0, b"x") + _ANSWERS,
    ],
    WORDS,
    share=4,
)
def connection(data: bytes) -> None:
    """A stream in pieces, between which the owner of the connection does what a script says."""
    given = Input(data)
    script, choice = given.part() or b"\0", given.number()
    driver, error = Driver(), None
    try:
        for at, piece in enumerate(cut(expand(given.rest()), choice)):
            driver.take(piece, script[at % len(script)])
    except FabricError as raised:
        error = raised
    driver.end(error)


@functools.cache
def _environment() -> tuple:
    settings = replace(config.load(), message_bytes_limit=1 << 28)
    return asyncio.new_event_loop(), settings, process_of(os.getpid())


@target([bytes([choice]) + data for data in STREAMS for choice in (2, 5)], WORDS, share=1)
def channel(data: bytes) -> None:
    """The same with sockets, in an event loop; `cma` reads this process at any address."""
    given = Input(data)
    choice = given.number()
    loop = _environment()[0]
    loop.run_until_complete(_attack(choice, expand(given.rest())))


async def _attack(choice: int, data: bytes) -> None:
    loop, settings, process = _environment()
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    transport = PlainTransport(far, settings.stream_bulk_bytes)
    attacked = Channel(loop, transport, Handshake(Hello(), True), settings)
    near.send(Hello().encode())
    await attacked.open()
    attacked.use(CMAPath(process, 1 << 16))
    attacked.send(b"", [_OFFERED])
    reading = loop.create_task(_read_all(attacked)) if choice & 8 else None
    try:
        for piece in cut(data, choice):
            with contextlib.suppress(OSError):
                near.send(piece)
            await asyncio.sleep(0)
        near.close()
        for _ in range(8):
            await asyncio.sleep(0)
    finally:
        near.close()
        attacked.abort()
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)
    if reading is not None and not isinstance(reading.exception(), (FabricError, OSError)):
        raise reading.exception()


async def _read_all(attacked: Channel) -> None:
    while True:
        await attacked.receive()

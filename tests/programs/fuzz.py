"""Mutated streams against everything that reads a peer's input; prints the failures.

    python tests/programs/fuzz.py --count 1000000 --seed 7 [--targets records hello codec ...]

Each input is a stream as a good peer sends it, with a few bytes changed, moved, repeated or cut. It
may be refused by an error of ours, and by no other; it may not cost more than 50 ms of CPU time in
one go, nor memory above what it brought and 64 MiB. An input is made again by its seed and number.
Ends with 1 where something was found. A crash or a hang ends the process (`--timeout`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import replace

import msgpack
import numpy as np
from distributed.protocol import Serialize, to_serialize
from distributed.protocol.serialize import ToPickle

from dask_fabric import config
from dask_fabric.codec.codec import Codec
from dask_fabric.comm.device import staging_receive
from dask_fabric.comm.device import staging_send as staging
from dask_fabric.comm.serialize.distributed import codec
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.transport import PlainTransport
from dask_fabric.errors import FabricError
from dask_fabric.paths.cma.endpoint import CMAPath
from dask_fabric.paths.cma.process import process_of
from dask_fabric.paths.negotiation import decode_found
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.message_reader import MessageReader
from dask_fabric.wire.path import Path
from dask_fabric.wire.records import close_record, error_record, paths_record

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, REQUEST = 1, 2, 5
CMA = 1
STALL_SECONDS = 0.05
STALL_COUNT = 3
MEMORY_BYTES = 64 << 20
BATCH_COUNT = 500
EDGES = [0, 1, 4, 8, 16, 24, 63, 64, 127, 128, 255, 256, 4096, 65_535, 65_536, 1 << 20, 1 << 24]
EDGES += [(1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


# ---------------------------------------------------------------- mutation


def flip(rng, data, at):
    data[at] ^= 1 << rng.randrange(8)


def set_edge(rng, data, at):
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(EDGES) & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def add_little(rng, data, at):
    width = rng.choice((1, 2, 4, 8))
    value = int.from_bytes(data[at : at + width], "little") + rng.choice((-16, -8, -1, 1, 8, 16))
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def cut_out(rng, data, at):
    del data[at : at + rng.choice((1, 2, 4, 8, 16, 24, rng.randrange(1, 64)))]


def repeat(rng, data, at):
    begin = rng.randrange(len(data))
    data[at:at] = data[begin : begin + rng.choice((1, 8, 16, 24, rng.randrange(1, 200)))]


def insert(rng, data, at):
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 16, 24)))


def end_here(rng, data, at):
    del data[at:]


def swap(rng, data, at):
    other, width = rng.randrange(len(data)), rng.choice((1, 4, 8, 24))
    first, second = data[at : at + width], data[other : other + width]
    data[at : at + width], data[other : other + width] = second, first


def overwrite(rng, data, at):
    count = rng.randrange(1, 9)
    data[at : at + count] = rng.choice((b"\xff", b"\0", b"/", b"\n")) * count


MUTATIONS = (flip, set_edge, add_little, cut_out, repeat, insert, end_here, swap, overwrite)


def mutated(rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        if not changed:
            changed += rng.randbytes(24)
        rng.choice(MUTATIONS)(rng, changed, rng.randrange(len(changed)))
    return bytes(changed)


def pieces(rng, data: bytes):
    size = rng.choice((1, 7, 24, 1000, 1 << 16, 1 << 20))
    size = max(size, len(data) // 200)
    return (data[at : at + size] for at in range(0, len(data), size))


# ---------------------------------------------------------------- good streams


def message(sequence, header, frames=(), offered=()):
    table = b"".join(ENTRY.pack(nbytes, CMA, 0, 0, 8) for nbytes, _ in offered)
    table += b"".join(ENTRY.pack(len(frame), 0, 0, 0, 0) for frame in frames)
    addresses = b"".join(struct.pack("<Q", address) for _, address in offered)
    count = len(frames) + len(offered)
    prefix = PREFIX.pack(MESSAGE, 0, 0, count, len(header), sequence)
    return prefix + table + addresses + header + b"".join(frames)


def control(kind, sequence=0):
    return PREFIX.pack(kind, 0, 0, 0, 0, sequence)


RECORDS = [
    message(0, b"header", [b"frame", b"", b"x" * 1000]) + message(1, b"") + close_record(),
    message(0, b"h" * 70_000, [b"f" * 70_000, b"g"]) + message(1, b"next"),
    message(0, b"", [], [(65_536, 4096)] * 3) + message(1, b"h", [b"x"] * 50),
    message(0, b"", [b""] * 6000) + message(1, b"many", [b"1"] * 6000),
    message(0, b"h", [], [(65_536, 4096)] * 5000),
    message(0, b"t", [b"t"]) + error_record("text") + message(1, b"after"),
    paths_record(b"\x81\xa3cma\xa2no") + message(0, b"x") + control(ACKNOWLEDGE) + control(REQUEST),
]
SMALL = np.arange(7, dtype="<i8")
MESSAGES = [
    {"op": "ping", "reply": True, "nested": [1, 2.5, None, "text", b"bytes", {"k": (1, 2)}]},
    {"x": to_serialize(SMALL), "y": [to_serialize(np.zeros((3, 4), order="F")), "z"]},
    {"when": to_serialize(np.array(["2020-01-01"], "<M8[25s]")), "s": to_serialize(np.array("ab"))},
    {"o": to_serialize({"a": [1, "x", SMALL]}), "t": ToPickle(len), "u": Serialize("text")},
    [{"op": "a", "d": to_serialize(SMALL)}, {"op": "b"}, {"e": to_serialize(b"b" * 70_000)}],
]
HELLOS = [
    Hello(scheme="fabric"),
    Hello(
        scheme="fabric+ucx", pid=7, paths=("stream", "cma", "ucx"), memory=("host", "cuda"),
        features=("chunks",), limits={"frames": 1 << 20, "header": 1 << 20, "message": 1 << 30},
        refused={"ofi": "not built"}, boot="b" * 36, described={
            "cma": {"address": 4096, "nonce": bytes(16)},
            "ucx": {"version": "1.20.0", "transports": ["tcp"], "address": b"a" * 300, "token": 9},
        },
        address="127.0.0.1:8786", ends=("127.0.0.1 1", "127.0.0.1 2"),
    ),
]  # fmt: skip


# ---------------------------------------------------------------- targets


class Refused(Exception):
    """Stands for what distributed does with what is meant for it."""


def refuse(*args, **kwargs):
    raise Refused


class Dialect:
    """Distributed's, but for what would unpickle or run what a peer sends."""

    pickle_loads = staticmethod(refuse)
    merge_and_deserialize = staticmethod(refuse)

    def __getattr__(self, name):
        return getattr(codec.dialect, name)


class Records:
    name = "records"

    def run(self, rng, clock):
        data = mutated(rng, rng.choice(RECORDS))
        reader = MessageReader(1 << 20, 1 << 28, 1 << 20)
        reader.open([Path("cma", CMA, 1, 8)])
        for piece in pieces(rng, data):
            with clock:
                reader.receive_data(piece)
        return len(data)


class Hellos:
    name = "hello"

    def run(self, rng, clock):
        data = mutated(rng, rng.choice(HELLOS).encode())
        server_side = rng.random() < 0.5
        handshake = Handshake(HELLOS[0], server_side)
        handshake.data_to_send()
        with clock, contextlib.suppress(RuntimeError):  # more bytes than a handshake takes
            for piece in pieces(rng, data):
                handshake.receive(piece)
        return len(data)


class Found:
    name = "paths"

    def run(self, rng, clock):
        data = mutated(rng, msgpack.packb({"cma": "a reason", "ucx": "another"}))
        with clock:
            decode_found(data)
        return len(data)


class Codecs:
    name = "codec"

    def __init__(self):
        self.codec = Codec(Dialect())
        self.encoded = [
            (bytes(header), [bytes(frame) for frame in frames])
            for header, frames in map(codec.encode, MESSAGES)
        ]

    def run(self, rng, clock):
        header, frames = rng.choice(self.encoded)
        header, frames = mutated(rng, header), list(frames)
        if frames and rng.random() < 0.3:
            at = rng.randrange(len(frames))
            frames[at : at + 1] = [mutated(rng, frames[at])] * rng.choice((0, 1, 1, 1, 2))
        deserialize = rng.random() < 0.5
        with clock, contextlib.suppress(Refused):
            self.codec.offload_bytes(header, frames)
            self.codec.decode(header, [bytearray(frame) for frame in frames], deserialize)
        return len(header) + sum(map(len, frames))


class Chunks:
    name = "chunks"

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.settings = config.load()

    def run(self, rng, clock):
        chunks = [
            (
                staging.CHUNK.pack(staging.MARK, staging.CHUNK_KIND, 0, 100_000, 0),
                50_000,
            ),
            (
                staging.CHUNK.pack(staging.MARK, staging.CHUNK_KIND, 0, 100_000, 50_000),
                50_000,
            ),
            (staging.CHUNK.pack(staging.MARK, staging.CHUNK_KIND, 2, 10, 0), 10),
            (
                staging.MESSAGE.pack(staging.MARK, staging.MESSAGE_KIND, 2) + bytes(8) + b"\x80",
                0,
            ),
        ]
        at = rng.randrange(len(chunks))
        header, nbytes = chunks[at]
        header = header[:5] + mutated(rng, header[5:])
        chunks[at] = header, rng.choice((0, 5, nbytes, nbytes, 100_000))
        with clock:
            self.loop.run_until_complete(self.receive(chunks))
        return sum(nbytes for _, nbytes in chunks)

    async def receive(self, chunks):
        incoming = staging_receive.Incoming(self.settings)
        for header, nbytes in chunks:
            await incoming.receive(header, [memoryview(bytearray(nbytes))], False)


class Channels:
    name = "channel"

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.settings = replace(config.load(), message_bytes_limit=1 << 28)

    def run(self, rng, clock):
        data = mutated(rng, rng.choice(RECORDS))
        self.loop.run_until_complete(self.attack(rng, clock, data))
        return len(data)

    async def attack(self, rng, clock, data):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        transport = PlainTransport(far, self.settings.stream_bulk_bytes)
        channel = Channel(self.loop, transport, Handshake(HELLOS[0], True), self.settings)
        near.send(HELLOS[0].encode())
        await channel.open()
        channel.use(CMAPath(process_of(os.getpid()), self.settings.paths.cma.threshold_bytes))
        channel.send(b"", [SMALL])
        reading = self.loop.create_task(read_all(channel)) if rng.random() < 0.7 else None
        try:
            for piece in pieces(rng, data):
                with contextlib.suppress(OSError):
                    near.send(piece)
                with clock:
                    await asyncio.sleep(0)
            near.close()
            for _ in range(20):
                with clock:
                    await asyncio.sleep(0)
        finally:
            near.close()
            channel.abort()
            if reading is not None:
                await asyncio.gather(reading, return_exceptions=True)
                check(reading)


async def read_all(channel):
    while True:
        await channel.receive()


def check(reading):
    error = reading.exception()
    if not isinstance(error, (FabricError, OSError)):
        raise error


TARGETS = (Records, Hellos, Found, Codecs, Chunks, Channels)


# ---------------------------------------------------------------- measuring


class Clock:
    """The longest CPU time that one piece has taken."""

    worst_seconds = 0.0

    def __enter__(self):
        self.begin = time.thread_time()

    def __exit__(self, *_):
        self.worst_seconds = max(self.worst_seconds, time.thread_time() - self.begin)


def resident_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(field))
    return int(line.split()[1]) << 10


def forget_peak() -> int:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again from VmRSS: proc(5)
    return resident_bytes("VmRSS")


def run(target, seed: int, number: int, found: list[str]) -> tuple[str, int, float]:
    """Give the outcome of one input, its bytes, and the longest CPU time of a piece of it."""
    clock, nbytes, outcome = Clock(), 0, "taken"
    try:
        nbytes = target.run(random.Random(f"{seed} {number}"), clock)
    except FabricError as error:
        outcome = type(error).__name__
    except Exception as error:
        outcome = type(error).__name__
        found.append(f"{target.name} {number}: {outcome}: {error}")
    return outcome, nbytes, clock.worst_seconds


def fuzz(target, seed: int, begin: int, count: int, found: list[str]) -> Counter:
    outcomes = Counter()
    for first in range(begin, begin + count, BATCH_COUNT):
        before_bytes, most_bytes = forget_peak(), 0
        for number in range(first, min(first + BATCH_COUNT, begin + count)):
            outcome, nbytes, seconds = run(target, seed, number, found)
            outcomes[outcome] += 1
            most_bytes = max(most_bytes, nbytes)
            # A busy machine charges a process for what is not its own: the same input costs as
            # much each time.
            for _ in range(STALL_COUNT):
                if seconds > STALL_SECONDS:
                    seconds = min(seconds, run(target, seed, number, [])[2])
            if seconds > STALL_SECONDS:
                found.append(f"{target.name} {number}: {seconds * 1e3:.0f} ms of CPU")
        grown = resident_bytes("VmHWM") - before_bytes - most_bytes
        if grown > MEMORY_BYTES:
            found.append(f"{target.name} {first} to {number}: {grown >> 20} MiB of memory")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="inputs for all targets together")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--begin", type=int, default=0, help="the number of the first input")
    names = [target.name for target in TARGETS]
    parser.add_argument("--targets", nargs="+", choices=names, default=names)
    parser.add_argument("--timeout", type=int, default=0, help="seconds without an end: a hang")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.timeout:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(options.timeout)
    gc.collect()
    gc.freeze()  # what the collector spends on the modules is not the input's fault
    found: list[str] = []
    count = -(-options.count // len(options.targets))
    for kind in TARGETS:
        if kind.name in options.targets:
            outcomes = fuzz(kind(), options.seed, options.begin, count, found)
            told = ", ".join(f"{name} {n}" for name, n in outcomes.most_common())
            print(f"{kind.name}: {count} inputs with seed {options.seed}: {told}", flush=True)
    print("\n".join(found[:50]) or "nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

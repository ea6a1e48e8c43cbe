"""The other process of a test, run as a script: it reports its actions on stdout.

Its first line of input is JSON: the role, the address, whether it
listens, certificates and configuration. It ends with its standard input, and so with the test.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import os
import signal
import sys
import threading

import dask
import numpy as np
from distributed.comm import Comm, CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.security import Security

from dask_fabric.comm.network import socket_options
from dask_fabric.engine import retries, socket_jobs
from dask_fabric.memory.arrays import new_array
from dask_fabric.paths.ucx import core as ucx

WARM_UP_COUNT = 10  # messages until a path that opens connections of its own has done so


def say(*words: object) -> None:
    print(*words, flush=True)


async def send(comm: Comm) -> None:
    """Write one message that nobody may ever read whole."""
    data = new_array(message_bytes)  # in memory that every path takes
    data[:] = 1
    await comm.write({"x": to_serialize(data)})
    del data
    say("written")
    await outcome(comm.read())


async def send_hundred(comm: Comm) -> None:
    data = np.ones(message_bytes, "u1")
    for _ in range(100):
        await comm.write({"x": to_serialize(data)})
    say("written")
    await outcome(comm.read())


async def send_when_asked(comm: Comm) -> None:
    """Send one message, and then one for each that arrives."""
    data = np.ones(message_bytes, "u1")

    async def forever():
        while True:
            await comm.write({"x": to_serialize(data)})
            say("written")
            await comm.read()

    await outcome(forever())


async def receive(comm: Comm) -> None:
    await outcome(comm.read())


async def receive_and_stop(comm: Comm) -> None:
    """Stop this process during a large message, and check the message afterwards."""
    reading = asyncio.ensure_future(comm.read())
    while not (moving(comm) or reading.done()):
        await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    await outcome(reading)


def moving(comm: Comm) -> bool:
    """Whether the engine receives, or (under TLS) the loop has begun to."""
    begun = comm.statistics()["bytes_received"] > message_bytes // 100
    figures = ucx.statistics()
    return begun or figures["in_flight_count"] > 0 or socket_jobs.statistics()["job_count"] > 0


async def exchange(comm: Comm) -> None:
    """Send endlessly, and wait for the answer to each message."""
    data = np.ones(message_bytes, "u1")

    async def forever():
        while True:
            await comm.write({"x": to_serialize(data)})
            await comm.read()
            say("answered")

    await outcome(forever())


async def exchange_checked(comm: Comm) -> None:
    """Send endlessly, check what comes back, and name the paths that carried the first."""
    data = np.arange(message_bytes // 8, dtype="u8")

    async def forever():
        number = 0
        while True:
            number += 1
            await comm.write({"x": to_serialize(data + number)})
            message = await comm.read()
            is_right = np.array_equal(message["x"], data + number)
            if number == WARM_UP_COUNT:
                traffic = comm.statistics()["traffic"].items()
                used = [name for name, one in traffic if one["bytes_received"] > message_bytes]
                say("by", *used)
            elif number > WARM_UP_COUNT or not is_right:
                say("right" if is_right else "wrong")

    await outcome(forever())


async def echo(comm: Comm) -> None:
    async def forever():
        while True:
            message = await comm.read()
            await comm.write({"x": to_serialize(message["x"])})

    await outcome(forever())


async def be_idle(comm: Comm) -> None:
    """Wait for a message that never comes."""
    await comm.write("hello")
    await comm.read()
    say("idle")
    await outcome(comm.read())


async def write_on(comm: Comm) -> None:
    """Write far more than may be queued for the peer, which reads, so that a write waits."""
    data = np.ones(message_bytes, "u1")

    async def forever():
        while True:
            await comm.write({"x": to_serialize(data)})
            say("written")

    await outcome(forever())


async def answer(comm: Comm) -> None:
    async def forever():
        while True:
            await comm.read()
            await comm.write("read")

    await outcome(forever())


async def answer_with_stuck_queue(comm: Comm) -> None:
    """Like `answer`, but first block UCX's shared queue, like a process killed in a write to it."""
    block_queue()
    say("blocked")
    await answer(comm)


@functools.cache  # later the queues of others are mapped too
def block_queue() -> None:
    """Take a place in it, by adding 1 to the number at its beginning: UCX waits there for ever.

    Where that number is: ``uct_mm_fifo_ctl_t`` in UCX's ``uct/sm/mm/base/mm_iface.h``.
    """
    with open("/proc/self/maps") as file:
        for line in file:
            if "/SYSV" in line or "/ucx_shm_posix" in line:
                begin, _, end = line.split()[0].partition("-")
                if int(end, 16) - int(begin, 16) < 1 << 20:  # the larger ones are no queues
                    ctypes.c_uint64.from_address(int(begin, 16)).value += 1


async def outcome(awaitable) -> None:
    try:
        await awaitable
    except CommClosedError:
        say("CommClosedError")
    else:
        say("a message")


async def serve(role, address: str, listen_args: dict) -> None:
    async def handle(comm):
        await role(comm)
        comm.abort()

    async with listen(address, handle, **listen_args) as listener:
        say(listener.contact_address)
        await asyncio.Event().wait()


async def join(role, address: str, connect_args: dict) -> None:
    comm = await connect(address, **connect_args)
    await role(comm)
    comm.abort()
    await asyncio.Event().wait()


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    dask.config.set(order["config"])
    if order["probe_count"]:
        socket_options._PROBE_COUNT = order["probe_count"]
    if order["pause_seconds"]:
        retries.PAUSE_SECONDS = order["pause_seconds"]
    message_bytes = order["message_bytes"]
    security = Security(**order["security"]) if order["security"] else None
    role = globals()[order["role"]]
    if order["listens"]:
        args = security.get_listen_args("scheduler") if security else {}
        asyncio.run(serve(role, order["address"], args))
    else:
        args = security.get_connection_args("client") if security else {}
        asyncio.run(join(role, order["address"], args))

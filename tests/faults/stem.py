"""A process that forks the peers of `test_cma_death`, so that they need not import anything.

Each line of its input is JSON: a role and an address. It answers with the pid of the peer, and what
the peers say follows in lines of the same output. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys

import numpy as np
from distributed.comm import CommClosedError, connect
from distributed.protocol import to_serialize

AHEAD_COUNT = 2
CHILD_SECONDS = 20


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def message(number: int, nbytes: int) -> dict:
    return {"number": number, "x": to_serialize(np.full(nbytes // 8, number, "u8"))}


def is_whole(received: dict, nbytes: int) -> bool:
    data = np.frombuffer(received["x"], "u8")
    return data.nbytes == nbytes // 8 * 8 and bool((data == received["number"]).all())


async def send_many(comm, nbytes: int) -> None:
    """Send endlessly, some messages ahead of the peer."""
    for number in range(1_000_000):
        await comm.write(message(number, nbytes))
        if number >= AHEAD_COUNT:
            await comm.read()


async def receive_many(comm, nbytes: int) -> None:
    try:
        while True:
            received = await comm.read()
            if not is_whole(received, nbytes):
                say("garbage")
            await comm.write(received["number"])
    except CommClosedError:
        say("CommClosedError")


async def send_one(comm, nbytes: int) -> None:
    await comm.write(message(7, nbytes))
    for _ in range(3):
        await asyncio.sleep(0)
    say("written")


async def send_and_wait(comm, nbytes: int) -> None:
    await send_one(comm, nbytes)
    await asyncio.Event().wait()


async def send_and_close(comm, nbytes: int) -> None:
    await send_one(comm, nbytes)
    await comm.close()


async def send_and_exit(comm, nbytes: int) -> None:
    await send_one(comm, nbytes)
    os._exit(0)


async def send_and_end(comm, nbytes: int) -> None:
    await send_one(comm, nbytes)
    sys.exit()


async def send_and_exec(comm, nbytes: int) -> None:
    await send_one(comm, nbytes)
    os.execv("/bin/sleep", ["sleep", "60"])


async def send_and_leave_a_child(comm, nbytes: int) -> None:
    """A child, forked behind Python's back, has the socket as long as it lives."""
    await send_one(comm, nbytes)
    libc = ctypes.CDLL(None)
    child = libc.fork()
    if child == 0:
        libc.close(1)  # for its end is awaited
        libc.alarm(CHILD_SECONDS)  # should the test fail
        libc.pause()
    say(child)
    os.kill(os.getpid(), signal.SIGKILL)


async def send_and_abort(comm, nbytes: int) -> None:
    """The memory is reused at once, and this process lives on."""
    data = np.full(nbytes // 8, 7, "u8")
    await comm.write({"number": 7, "x": to_serialize(data)})
    for _ in range(3):
        await asyncio.sleep(0)
    say("written")
    comm.abort()
    data[:] = 8
    await asyncio.Event().wait()


async def play(role: str, address: str, nbytes: int) -> None:
    comm = await connect(address)
    await globals()[role](comm, nbytes)


def peer(order: dict) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        asyncio.run(play(order["role"], order["address"], order["nbytes"]))
    finally:
        os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(0)
            peer(json.loads(line))
        say(pid)

"""What a benchmark of comms measures with: a comm to another process, or what stands beside it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from distributed.comm import connect
from distributed.protocol import to_serialize
from distributed.security import Security

from arguments import is_encrypted
from peer import cpu_seconds

SMALL = {"op": "task-finished", "key": "x-0123456789", "nbytes": 28}
PING = {"op": "ping"}
PEER = Path(__file__).with_name("peer.py")


def start_peer(scheme: str, options: argparse.Namespace) -> tuple[subprocess.Popen, str]:
    """Start the other process; returns it and what it prints: its address."""
    security = options.security if is_encrypted(scheme) else None
    config = {"scheme": scheme, "uvloop": options.uvloop, "security": security}
    config["nbytes"] = max(options.sizes)
    config["on_gpu"] = options.on_gpu
    command = [sys.executable, str(PEER)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps(config) + "\n")
    process.stdin.flush()
    address = process.stdout.readline().strip()
    if not address:
        process.wait()
        sys.exit(f"the peer process could not listen on {scheme}://; its error is above")
    return process, address


class Session:
    """A process of its own at the other end, that ends with this session.

    Attributes
    ----------
    least_bytes : int
        Smaller arrays are not measured.
    pids : list of int
        The process that asks, and the one that answers.
    """

    least_bytes = 0

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        self.scheme = scheme
        self.process, self.address = start_peer(scheme, options)
        self.pids = [os.getpid(), self.process.pid]

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.communicate()


class CommSession(Session):
    """Measurements over one comm."""

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        super().__init__(scheme, options)
        self._arguments: dict[str, Any] = {}
        if is_encrypted(scheme):
            self._arguments = Security(**options.security).get_connection_args("client")

    async def open(self) -> None:
        self.comm = await connect(self.address, **self._arguments)

    async def close(self) -> None:
        await self.comm.close()
        self.process.communicate()

    async def ask(self, message: dict) -> dict:
        """Write one message and read the answer."""
        await self.comm.write(message)
        return await self.comm.read()

    async def ping(self, count: int) -> float:
        """Seconds for so many round trips."""
        read, write = self.comm.read, self.comm.write
        begin = time.perf_counter()
        for _ in range(count):
            await write(PING)
            await read()
        return time.perf_counter() - begin

    async def flood(self, count: int) -> float:
        """Seconds for so many messages one way, until the last is acknowledged."""
        write = self.comm.write
        await write({"op": "flood", "count": count})
        begin = time.perf_counter()
        for _ in range(count):
            await write(SMALL)
        await self.comm.read()
        return time.perf_counter() - begin

    async def send(self, array: np.ndarray, count: int) -> float:
        """Seconds for so many arrays, each answered by a small message."""
        read, write = self.comm.read, self.comm.write
        begin = time.perf_counter()
        for _ in range(count):
            await write({"op": "data", "x": to_serialize(array)})
            await read()
        return time.perf_counter() - begin

    async def digest(self, array: Any) -> dict:
        """What the other side says of an array: the digest of its bytes, and whose array it is."""
        return await self.ask({"op": "digest", "x": to_serialize(array)})

    async def send_beside_spinner(self, array: np.ndarray, count: int) -> float:
        """As `send`, while a thread of the receiver runs pure Python."""
        await self.ask({"op": "spin", "on": True})
        try:
            return await self.send(array, count)
        finally:
            await self.ask({"op": "spin", "on": False})

    async def send_cpu(self, array: np.ndarray, count: int) -> float:
        """CPU seconds of both processes for so many arrays."""
        before = cpu_seconds() + (await self.ask({"op": "usage"}))["cpu_seconds"]
        await self.send(array, count)
        return cpu_seconds() + (await self.ask({"op": "usage"}))["cpu_seconds"] - before

    async def connects(self, count: int) -> float:
        """Seconds for so many connections, Dask's handshake included, opened and closed."""
        begin = time.perf_counter()
        for _ in range(count):
            comm = await connect(self.address, **self._arguments)
            await comm.close()
        return time.perf_counter() - begin

    async def memory_bytes(self) -> list[int]:
        """Resident memory of the receiver now, and its peak so far."""
        return (await self.ask({"op": "memory"}))["memory_bytes"]

"""The other process of benchmarks/comm.py: answers measurements over one scheme.

Started as ``python peer.py`` with one line of JSON on its standard input; prints its address and
serves until that input ends, so that it cannot outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import resource
import socket
import struct
import sys
import threading
import time

import numpy as np

BATCH = struct.Struct("!QQ")  # size in bytes, count
CPU = struct.Struct("!d")


def cpu_seconds() -> float:
    """User and system time of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_bytes() -> list[int]:
    """Resident memory of this process, and its peak."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return [resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]


def recv_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill the view from a blocking socket; EOFError where it ends early."""
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


class Spinner:
    """A thread that runs pure Python, and so takes the GIL as a task does."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        count = 0
        while not self._stop.is_set():
            for _ in range(1000):
                count += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Responder:
    """Answers the measurements of one comm."""

    def __init__(self, comm) -> None:
        self.comm = comm
        self.spinner: Spinner | None = None

    async def run(self) -> None:
        """Serve until the other side closes."""
        from distributed.comm.core import CommClosedError

        read, write = self.comm.read, self.comm.write
        try:
            while True:
                message = await read()
                op = message["op"]
                if op == "ping":
                    await write(message)
                elif op == "data":
                    del message  # the receiver drops the array before it answers
                    await write({"op": "ack"})
                else:
                    await write(await getattr(self, op)(message))
        except CommClosedError:
            pass
        finally:
            await self.spin({"on": False})
            await self.comm.close()

    async def flood(self, message: dict) -> dict:
        """Read the count of messages, then acknowledge the last."""
        read = self.comm.read
        for _ in range(message["count"]):
            await read()
        return {"op": "ack"}

    async def usage(self, message: dict) -> dict:
        return {"cpu_seconds": cpu_seconds()}

    async def memory(self, message: dict) -> dict:
        """Resident memory once the garbage is gone, and its peak so far, in bytes."""
        gc.collect()
        return {"memory_bytes": memory_bytes()}

    async def digest(self, message: dict) -> dict:
        """Say what has arrived: the digest of the bytes, and whose array it is."""
        array = message["x"]
        module = type(array).__module__.partition(".")[0]
        content = array.get() if module == "cupy" else array
        return {"digest": hashlib.sha256(content).hexdigest(), "module": module}

    async def spin(self, message: dict) -> dict:
        if message["on"] and self.spinner is None:
            self.spinner = Spinner()
        elif not message["on"] and self.spinner is not None:
            self.spinner.stop()
            self.spinner = None
        return {"op": "ack"}


async def serve(config: dict) -> None:
    """Listen on the scheme, print the address, serve until standard input ends."""
    from distributed.comm import listen
    from distributed.security import Security

    options = {}
    if config["security"]:
        options = Security(**config["security"]).get_listen_args("scheduler")
    address = f"{config['scheme']}://127.0.0.1:0"
    async with listen(address, lambda comm: Responder(comm).run(), **options) as listener:
        print(listener.contact_address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def serve_floor() -> None:
    """Blocking sockets into a warm buffer: what the kernel's loopback gives to Python."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        sock, _ = server.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = np.ones(1, "u1")
    with sock:
        try:
            while True:
                buffer = _serve_batch(sock, buffer)
        except EOFError:
            pass


def serve_memory(nbytes: int) -> None:
    """Hold warm memory for others to read; print where it is."""
    memory = np.ones(nbytes, "u1")
    print(memory.ctypes.data, flush=True)
    sys.stdin.read()


def _serve_batch(sock: socket.socket, buffer: np.ndarray) -> np.ndarray:
    head = bytearray(BATCH.size)
    recv_exactly(sock, memoryview(head))
    size, count = BATCH.unpack(head)
    if size > buffer.size:
        buffer = np.ones(size, "u1")
    view = memoryview(buffer)[:size]
    before = time.process_time()
    for _ in range(count):
        recv_exactly(sock, view)
        sock.sendall(b"\0")
    sock.sendall(CPU.pack(time.process_time() - before))
    return buffer


def make_context() -> None:
    """Use the GPU once, so that no measurement pays for that."""
    import cupy

    cupy.zeros(1)


def main() -> None:
    config = json.loads(sys.stdin.readline())
    if config["on_gpu"]:
        make_context()
    if config["scheme"] == "sockets":
        serve_floor()
    elif config["scheme"] == "process_vm_readv":
        serve_memory(config["nbytes"])
    elif config["uvloop"]:
        import uvloop

        uvloop.run(serve(config))
    else:
        asyncio.run(serve(config))


if __name__ == "__main__":
    main()

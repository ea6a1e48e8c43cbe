"""What the comms are held against: the same bytes moved without Dask, and a comm of others."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np

from peer import BATCH, CPU, recv_exactly
from sessions import Session
from ucx import perftest

SHARED_MEMORY = "posix,sysv,self"  # what fabric+ucx has within a host
LEAST_BYTES = 1_000_000_000
ATTEMPTS = 3


class FloorSession(Session):
    """The same over a blocking socket, without messages: what the loopback gives to Python."""

    async def open(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(self.address)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def close(self) -> None:
        self.socket.close()
        self.process.communicate()

    def _batch(self, array: np.ndarray, count: int) -> tuple[float, float]:
        view = memoryview(array).cast("B")
        self.socket.sendall(BATCH.pack(view.nbytes, count))
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.socket.sendall(view)
            self.socket.recv(1)
        elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
        answer = bytearray(CPU.size)
        recv_exactly(self.socket, memoryview(answer))
        return elapsed, cpu + CPU.unpack(answer)[0]

    async def ping(self, count: int) -> float:
        return self._batch(np.ones(1, "u1"), count)[0]

    async def send(self, array: np.ndarray, count: int) -> float:
        return self._batch(array, count)[0]

    async def send_cpu(self, array: np.ndarray, count: int) -> float:
        return self._batch(array, count)[1]


class IOVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class CopySession(Session):
    """A loop of process_vm_readv between warm buffers, of huge pages where numpy asks for them."""

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        super().__init__(scheme, options)
        self.buffer = np.ones(max(options.sizes), "u1")
        self.libc = ctypes.CDLL(None, use_errno=True)

    async def open(self) -> None:
        """The other process is no more than the memory that is read."""

    async def close(self) -> None:
        self.process.communicate()

    async def send(self, array: np.ndarray, count: int) -> float:
        here = ctypes.byref(IOVec(self.buffer.ctypes.data, array.nbytes))
        there = ctypes.byref(IOVec(int(self.address), array.nbytes))
        begin = time.perf_counter()
        for _ in range(count):
            if self.libc.process_vm_readv(self.process.pid, here, 1, there, 1, 0) != array.nbytes:
                raise OSError(ctypes.get_errno(), "process_vm_readv")
        return time.perf_counter() - begin

    async def send_cpu(self, array: np.ndarray, count: int) -> float:
        before = time.process_time()
        await self.send(array, count)
        return time.process_time() - before


class PerftestSession(Session):
    """UCX's own ucx_perftest: tags, one way, by shared memory as fabric+ucx has it."""

    least_bytes = 10_000_000
    transports: str | None = SHARED_MEMORY
    memory = "host"

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        self.scheme, self.library, self.pids = scheme, options.ucx_library, []

    async def open(self) -> None:
        """Each measurement starts two processes of its own."""

    async def close(self) -> None:
        """They have ended."""

    def kill(self) -> None:
        """They have ended."""

    async def send(self, array: np.ndarray, count: int) -> float:
        enough = max(LEAST_BYTES // array.nbytes, count)  # most of a short run is its start
        for _ in range(ATTEMPTS):  # on a busy machine it has printed zeros
            rate = perftest(self.library, array.nbytes, enough, self.transports, self.memory)
            if rate:
                return array.nbytes * count / 1e9 / rate
        raise OSError(f"ucx_perftest does not run on {self.library}")


class DevicePerftestSession(PerftestSession):
    """The same with the memory of a GPU on both sides, by whatever UCX chooses."""

    least_bytes = 0
    transports = None
    memory = "cuda"


class ForeignSession(Session):
    """A comm between two processes of another Python, whose UCX and ours cannot be in one."""

    least_bytes = 10_000_000

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        self.scheme = scheme
        kind = "cupy" if options.on_gpu else "numpy"
        command = [options.ucxx, str(Path(__file__).with_name("foreign.py")), scheme, kind]
        environment = {**os.environ, "UCX_WARN_UNUSED_ENV_VARS": "n"}  # warns on stdout
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.pids = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"{self.scheme}:// has ended; its error is above")
        return json.loads(line)

    def _ask(self, *question) -> float:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()

    async def open(self) -> None:
        """The other client has a comm already."""

    async def close(self) -> None:
        self.process.communicate()

    async def ping(self, count: int) -> float:
        return self._ask("ping", 0, count)

    async def send(self, array: np.ndarray, count: int) -> float:
        return self._ask("send", array.nbytes, count)

    async def connects(self, count: int) -> float:
        return self._ask("connects", 0, count)


def perftest_library() -> str | None:
    """The UCX that ucx_perftest runs on; None where there is none (Debian: ucx-utils)."""
    program = shutil.which("ucx_perftest")
    if program is None:
        return None
    linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    found = re.search(r"libucp\S* => (\S+)", linked)
    return os.path.realpath(found[1]) if found else None

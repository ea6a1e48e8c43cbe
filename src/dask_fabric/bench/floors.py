"""The floors: the same bytes moved without Dask, for comparison with the protocols.

Each has the interface of `pairs.Pair`, and measures between this process and another one.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dask_fabric.bench import fi_pingpong, perftest
from dask_fabric.bench.agent import SMALL, Arrays, distribution
from dask_fabric.bench.floor_server import (
    BATCH,
    CPU,
    GIVE,
    RATE,
    SEND,
    no_delay,
    recv_exactly,
)
from dask_fabric.bench.pairs import NO_HOG, Hog, Program
from dask_fabric.errors import PairError

_START_SECONDS = 30.0
_COPY_BYTES = 1_000_000  # for smaller sizes the cost per message dominates, not the copy
_PERFTEST_BYTES = 10_000_000
_PERFTEST_TOTAL_BYTES = 1_000_000_000  # a shorter run would mostly measure its start
_ATTEMPTS = 3  # on a busy machine it sometimes prints zeros
_THREAD_BYTES = 100_000  # below, threads would only compete for the GIL
_SMALL_BYTES = len(str(SMALL))


def _server(name: str, config: Any) -> Program:
    command = [sys.executable, "-m", "dask_fabric.bench.floor_server"]
    return Program(name, command, config, {**os.environ, "PYTHONSAFEPATH": "1"})


class _Floor:
    """Base of all floors: a name, processes, and verbs."""

    name = ""
    verbs: dict[str, Callable[..., dict[str, Any]]]

    def __init__(self) -> None:
        self.pids = [os.getpid()]

    def can(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Whether this can be measured here."""
        return verb in self.verbs

    def ask(self, verb: str, hog: Hog = NO_HOG, **arguments: Any) -> dict[str, Any]:
        """Run the equivalent of a verb of `agent.Asker`; *hog* is ignored."""
        return self.verbs[verb](**arguments)

    def close(self) -> None:
        """End the other process, if there is one."""


class Sockets(_Floor):
    """Blocking sockets with warm memory: the speed of the loopback in Python."""

    name = "sockets"

    def __init__(self) -> None:
        self._program = _server(self.name, None)
        self._address = ("127.0.0.1", self._program.read(_START_SECONDS))
        self.pids = [os.getpid(), self._program.pid]
        self._sockets: list[socket.socket] = []
        self._arrays = Arrays()
        self.verbs = {
            name: getattr(self, f"_{name}")
            for name in ("ping", "flood", "send", "exchange", "fetch", "cpu", "connects")
        }

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._program.end()

    def _connect(self) -> socket.socket:
        return no_delay(socket.create_connection(self._address))

    def _connections(self, count: int) -> list[socket.socket]:
        while len(self._sockets) < count:
            self._sockets.append(self._connect())
        return self._sockets[:count]

    def _batch(self, sock: socket.socket, kind: bytes, nbytes: int, count: int) -> Iterator[None]:
        """Run a batch step by step; at its end, store the CPU time of the other side."""
        view = memoryview(self._arrays.of(nbytes))
        one = memoryview(bytearray(1))
        sock.sendall(BATCH.pack(kind, nbytes, count))
        for _ in range(count):
            if kind == GIVE:
                sock.sendall(b"\0")
                recv_exactly(sock, view)
            else:
                sock.sendall(view)
                if kind == SEND:
                    recv_exactly(sock, one)
            yield
        answer = bytearray(CPU.size)
        recv_exactly(sock, memoryview(answer))
        self._server_cpu = CPU.unpack(answer)[0]

    def _ping(self, count: int) -> dict[str, Any]:
        batch = self._batch(self._connections(1)[0], SEND, 1, count)
        times, now = [], time.perf_counter
        begin = now()
        for _ in batch:
            end = now()
            times.append(end - begin)
            begin = end
        return distribution(times)

    def _flood(self, count: int) -> dict[str, Any]:
        return self._together([RATE], _SMALL_BYTES, count)

    def _send(self, count: int, nbytes: int, comms: int = 1) -> dict[str, Any]:
        return self._together([SEND] * comms, nbytes, count)

    def _exchange(self, count: int, nbytes: int, comms: int = 1) -> dict[str, Any]:
        return self._together([SEND, GIVE] * comms, nbytes, count)

    def _fetch(self, count: int, nbytes: int, comms: int = 1) -> dict[str, Any]:
        return self._together([GIVE] * comms, nbytes, count)

    def _together(self, kinds: list[bytes], nbytes: int, count: int) -> dict[str, Any]:
        """Run a batch on each of several sockets: small messages in turn, large ones in threads."""
        batches = [
            self._batch(sock, kind, nbytes, count)
            for sock, kind in zip(self._connections(len(kinds)), kinds, strict=True)
        ]
        if nbytes < _THREAD_BYTES:
            batches = [_in_turn(batches)]
        others = [threading.Thread(target=_exhaust, args=[batch]) for batch in batches[1:]]
        begin = time.perf_counter()
        for thread in others:
            thread.start()
        _exhaust(batches[0])
        for thread in others:
            thread.join()
        return {"seconds": time.perf_counter() - begin}

    def _cpu(self, count: int, nbytes: int) -> dict[str, Any]:
        before = time.process_time()
        sent = self._send(count, nbytes)
        cpu = time.process_time() - before + self._server_cpu
        return {"seconds": cpu, "elapsed": sent["seconds"]}

    def _connects(self, count: int, at_once: int = 1) -> dict[str, Any]:
        """Connect and exchange a byte each way, like the handshake of a comm."""
        left = iter(range(count))
        lock = threading.Lock()

        def storm() -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                with self._connect() as sock:
                    _exhaust(self._batch(sock, SEND, 1, 1))

        threads = [threading.Thread(target=storm) for _ in range(at_once)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"seconds": time.perf_counter() - begin}


def _exhaust(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def _in_turn(batches: list[Iterator[None]]) -> Iterator[None]:
    for _ in itertools.zip_longest(*batches):
        yield


class _IOVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class _Copies(_Floor):
    """A loop of copies between warm buffers, in huge pages if numpy requests them."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self._buffer = np.ones(nbytes, "u1")
        self.verbs = {"send": self._send, "cpu": self._cpu}

    def can(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Large ones, one at a time."""
        alone = arguments.get("comms", 1) == 1
        return super().can(verb, arguments) and alone and arguments["nbytes"] >= _COPY_BYTES

    def _copy(self, nbytes: int) -> None:
        raise NotImplementedError

    def _send(self, count: int, nbytes: int, comms: int = 1) -> dict[str, Any]:
        begin = time.perf_counter()
        for _ in itertools.repeat(None, count):
            self._copy(nbytes)
        return {"seconds": time.perf_counter() - begin}

    def _cpu(self, count: int, nbytes: int) -> dict[str, Any]:
        before = time.process_time()
        sent = self._send(count, nbytes)
        return {"seconds": time.process_time() - before, "elapsed": sent["seconds"]}


class RemoteReads(_Copies):
    """One process reads the other's memory into its own."""

    name = "process_vm_readv"

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._program = _server(self.name, nbytes)
        self._address = self._program.read(_START_SECONDS)
        self.pids = [os.getpid(), self._program.pid]
        try:
            self._copy(1)
        except OSError as exc:
            self.close()
            raise PairError(f"{self.name}: {exc.strerror}: reading others is not allowed") from exc

    def close(self) -> None:
        self._program.end()

    def _copy(self, nbytes: int) -> None:
        here = ctypes.byref(_IOVec(self._buffer.ctypes.data, nbytes))
        there = ctypes.byref(_IOVec(self._address, nbytes))
        if self._libc.process_vm_readv(self._program.pid, here, 1, there, 1, 0) != nbytes:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


class MemoryCopies(_Copies):
    """Copies within this process."""

    name = "memcpy"

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self._source = np.ones(nbytes, "u1")

    def _copy(self, nbytes: int) -> None:
        np.copyto(self._buffer[:nbytes], self._source[:nbytes])


class Mappings(_Copies):
    """Mappings of a memory file: nothing is copied, and one page is read."""

    name = "mmap"

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self._fd = os.memfd_create(self.name)
        with open(self._fd, "wb", closefd=False) as file:
            file.write(self._buffer.data)

    def close(self) -> None:
        os.close(self._fd)

    def _copy(self, nbytes: int) -> None:
        with mmap.mmap(self._fd, nbytes, mmap.MAP_PRIVATE) as mapped:
            mapped[0]


class _LibraryProgram(_Floor):
    """A benchmark program that belongs to a library."""

    _least_bytes = _PERFTEST_BYTES

    def __init__(self, library: Any) -> None:
        self.pids = []
        self._library = library
        self.verbs = {"send": self._send}

    def can(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Large ones, one at a time."""
        alone = arguments.get("comms", 1) == 1
        return super().can(verb, arguments) and alone and arguments["nbytes"] >= self._least_bytes

    def _send(self, count: int, nbytes: int, comms: int = 1) -> dict[str, Any]:
        enough = max(_PERFTEST_TOTAL_BYTES // nbytes, count)
        for _ in range(_ATTEMPTS):
            rate = self._bandwidth(nbytes, enough)
            if rate:
                return {"seconds": nbytes * count / 1e9 / rate}
        raise PairError(f"{self.name} does not run on {self._library}")

    def _bandwidth(self, nbytes: int, count: int) -> float | None:
        raise NotImplementedError


class Perftest(_LibraryProgram):
    """UCX's own benchmark: tags, one way, by the shared memory that fabric+ucx uses."""

    name = "ucx_perftest"
    _transports: str | None = perftest.SHARED_MEMORY
    _memory = "host"

    def _bandwidth(self, nbytes: int, count: int) -> float | None:
        return perftest.bandwidth(self._library, nbytes, count, self._transports, self._memory)


class FiPingpong(_LibraryProgram):
    """libfabric's own benchmark: messages there and back, by the provider of fabric+ofi."""

    name = fi_pingpong.PROGRAM

    def _bandwidth(self, nbytes: int, count: int) -> float | None:
        return fi_pingpong.bandwidth(self._library, nbytes, count)


class DevicePerftest(Perftest):
    """The same with GPU memory on both sides, by the transport that UCX chooses."""

    _least_bytes = 0
    _transports = None
    _memory = "cuda"

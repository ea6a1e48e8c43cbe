"""The other end of the floors: ``python -m dask_fabric.bench.floor_server sockets|memory``.

A `pairs.Program`: reads one line, prints its port or address, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time

import numpy as np

# Kind of the batch, bytes of each message, count.
BATCH = struct.Struct("!cQQ")
SEND, GIVE, RATE = b"s", b"g", b"r"
CPU = struct.Struct("!d")
_MANY_BYTES = 65536


def no_delay(sock: socket.socket) -> socket.socket:
    """Send small messages at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def recv_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill the view from a blocking socket; raise EOFError if it ends early."""
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


class _Connection:
    """Answers batches on one socket, with warm memory."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = no_delay(sock)
        self._buffer = np.ones(1, "u1")

    def run(self) -> None:
        head = bytearray(BATCH.size)
        with self._sock, contextlib.suppress(EOFError, OSError):
            while True:
                recv_exactly(self._sock, memoryview(head))
                kind, nbytes, count = BATCH.unpack(head)
                before = time.thread_time()
                self._answer(kind, nbytes, count)
                self._sock.sendall(CPU.pack(time.thread_time() - before))

    def _answer(self, kind: bytes, nbytes: int, count: int) -> None:
        if nbytes > self._buffer.size:
            self._buffer = np.ones(nbytes, "u1")
        view = self._buffer.data[:nbytes]
        if kind == RATE:
            self._take(nbytes * count)
            return
        for _ in range(count):
            if kind == SEND:
                recv_exactly(self._sock, view)
                self._sock.sendall(b"\0")
            else:
                recv_exactly(self._sock, memoryview(bytearray(1)))
                self._sock.sendall(view)

    def _take(self, nbytes: int) -> None:
        """Receive small messages, many at once."""
        view = memoryview(bytearray(_MANY_BYTES))
        while nbytes:
            count = self._sock.recv_into(view[:nbytes])
            if not count:
                raise EOFError
            nbytes -= count


def _serve_sockets() -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(json.dumps(server.getsockname()[1]), flush=True)
    threading.Thread(target=_accept, args=[server], daemon=True).start()
    sys.stdin.read()


def _accept(server: socket.socket) -> None:
    while True:
        sock, _ = server.accept()
        threading.Thread(target=_Connection(sock).run, daemon=True).start()


def _serve_memory(nbytes: int) -> None:
    """Hold warm memory for others to read."""
    memory = np.ones(nbytes, "u1")
    print(json.dumps(memory.ctypes.data), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    config = json.loads(sys.stdin.readline())
    if config is None:
        _serve_sockets()
    else:
        _serve_memory(config)

"""A process with a UCX worker, for tests: it evaluates expressions and sends the results.

UCX lives once in a process and prints on its standard output, so no test runs it in its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time  # noqa: F401

import numpy as np

from dask_fabric.paths.ucx import core as ucx
from dask_fabric.paths.ucx import worker as ucx_worker
from dask_fabric.paths.ucx.library import Library
from dask_fabric.paths.ucx.python_endpoint import UCXEndpoint

endpoints: dict[int, UCXEndpoint] = {}
buffers: dict[tuple[int, int], np.ndarray] = {}


def start(library: str, options=()) -> bytes:
    ucx.start(eval(library, {"Library": Library}), options)
    return ucx.address()


libc = ctypes.CDLL(None)
semaphore = ctypes.create_string_buffer(64)


def bind() -> None:
    """Have UCX count, in a semaphore, the threads that are to be bound to a device."""
    function = ctypes.cast(libc.sem_post, ctypes.c_void_p).value
    ucx_worker.bind(function, ctypes.addressof(semaphore))


def bound_count() -> int:
    value = ctypes.c_int()
    libc.sem_getvalue(semaphore, ctypes.byref(value))
    return value.value


def bind_in_vain() -> None:
    ucx_worker.bind(ctypes.cast(libc.abs, ctypes.c_void_p).value, 7)  # which gives 7


def connect(address: bytes, own_token: int, peer_token: int) -> None:
    endpoints[own_token] = UCXEndpoint(address, own_token, peer_token)


def close(token: int) -> None:
    endpoints.pop(token).close()


def content(size: int, index: int) -> np.ndarray:
    return np.resize(np.roll(np.arange(251, dtype="u1"), index), size)


def offer(token: int, size: int, index: int = 0) -> int:
    return endpoints[token].offer(content(size, index), 7, index)


def post(token: int, size: int, index: int = 0) -> int:
    memory = np.full(size, 0xEE, "u1")
    operation = endpoints[token].post(memory, 7, index)
    buffers[token, operation] = memory
    return operation


def wait(token: int, operation: int, timeout: float = 30.0):
    """Give the bytes that moved, or the name of the error."""
    try:
        return endpoints[token].wait(operation, timeout)
    except TimeoutError as exc:
        return "ETIMEDOUT" if exc.errno else "none yet"
    except OSError as exc:
        return errno.errorcode[exc.errno]


def received(token: int, operation: int, size: int, index: int = 0) -> bool:
    """Whether a receive has ended well, with what the sender sends."""
    moved = wait(token, operation)
    memory = buffers.pop((token, operation))
    return moved == size and np.array_equal(memory, content(size, index))


def untouched(token: int, operation: int) -> bool:
    return bool((buffers[token, operation] == 0xEE).all())


def thread_figures() -> tuple[str, str, int]:
    """State, CPU ticks and sleeps of the thread that makes UCX progress."""
    for task in os.scandir("/proc/self/task"):
        with open(f"{task.path}/stat") as file:
            _, name, rest = file.read().replace("(", ")").split(")")
        if name == "fabric-ucx":
            with open(f"{task.path}/status") as file:
                sleeps = [line.split()[1] for line in file if line.startswith("voluntary")]
            fields = rest.split()
            return fields[0], " ".join(fields[11:13]), int(sleeps[0])
    raise LookupError("no such thread")


def in_forked_child(expression: str) -> str:
    reading, writing = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, outcome(expression).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = file.read()
    os.wait()
    return answer


def outcome(expression: str) -> str:
    try:
        return repr((True, eval(expression, globals())))
    except Exception as exc:
        return repr((False, f"{type(exc).__name__}: {exc}"))


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    assert ucx_worker.is_running() is False
    for line in sys.stdin:
        answers.write(outcome(line) + "\n")

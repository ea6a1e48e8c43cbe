"""One end of a measuring pair: run as a program, or by the workers of a cluster.

It needs only Python, numpy and distributed, so that it also runs where this package is not
installed: by its path under another Python, or pickled by value on a worker. As a program it reads
its configuration, a line of JSON, from standard input. A server then prints its address; a client
answers every line, which is a verb of `Asker` with arguments. Both end when standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from distributed.comm import connect, listen
from distributed.comm.core import CommClosedError
from distributed.protocol import to_serialize
from distributed.security import Security

SMALL = {"op": "task-finished", "key": "x-0123456789", "nbytes": 28}
PING = {"op": "ping"}
_PERIOD = 251  # of the bytes in an array
BUCKETS_PER_OCTAVE = 8  # in histograms of latencies: 9 % each
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def cpu_seconds() -> float:
    """User and system time of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_bytes() -> list[int]:
    """Resident memory of this process, and its peak."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return [resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]


def distribution(seconds: list[float]) -> dict[str, Any]:
    """Sum, quantiles and histogram of times.

    Bucket *n* of the histogram counts times from 2 ** (n / 8) nanoseconds on.
    """
    times = np.maximum(np.asarray(seconds), 1e-9)
    buckets = np.floor(np.log2(times * 1e9) * BUCKETS_PER_OCTAVE).astype(int)
    numbers, counts = np.unique(buckets, return_counts=True)
    return {
        "seconds": float(times.sum()),
        "quantiles": {name: float(np.quantile(times, q)) for name, q in QUANTILES.items()},
        "histogram": {str(n): int(c) for n, c in zip(numbers, counts, strict=True)},
    }


class Arrays:
    """Warm memory to send from: views of one array, made when first needed.

    Parameters
    ----------
    module : str
        ``numpy``, or ``cupy`` for the memory of a GPU.
    """

    def __init__(self, module: str = "numpy") -> None:
        self._module = importlib.import_module(module)
        self._array = self._module.ones(0, "u1")

    def of(self, nbytes: int) -> Any:
        if self._array.nbytes < nbytes:
            some = self._module.arange(_PERIOD, dtype="u1")
            self._array = self._module.tile(some, nbytes // _PERIOD + 1)
        return self._array[:nbytes]


def digest(array: Any) -> dict[str, str]:
    """Give a digest of an array, and the module that owns its memory."""
    module = type(array).__module__.partition(".")[0]
    content = array.get() if module == "cupy" else array
    return {"digest": hashlib.sha256(content).hexdigest(), "module": module}


class Hog:
    """A thread that runs pure Python, and so holds the GIL like a task."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def set(self, on: bool) -> None:
        """Start or stop the thread, unless it is in that state already."""
        if on and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        elif not on and self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _spin(self) -> None:
        count = 0
        while not self._stop.is_set():
            for _ in range(1000):
                count += 1


class Responder:
    """Answers the measurements on one comm, with arrays allocated before timing starts."""

    def __init__(self, comm: Any, arrays: Arrays) -> None:
        self._comm, self._arrays = comm, arrays
        self._hog = Hog()

    async def run(self) -> None:
        """Serve until the other side closes."""
        others = {
            "flood": self._flood,
            "give": self._give,
            "digest": self._digest,
            "usage": self._usage,
            "memory": self._memory,
            "hog": self._set_hog,
        }
        read, write = self._comm.read, self._comm.write
        try:
            while True:
                message = await read()
                op = message["op"]
                if op == "ping":
                    await write(message)
                elif op == "data":
                    del message  # free the array before the answer
                    await write({"op": "ack"})
                else:
                    await write(await others[op](message))
        except CommClosedError:
            pass
        finally:
            self._hog.set(False)
            await self._comm.close()

    async def _flood(self, message: dict) -> dict:
        """Read the count of messages, then acknowledge the last."""
        for _ in range(message["count"]):
            await self._comm.read()
        return {"op": "ack"}

    async def _give(self, message: dict) -> dict:
        """Send an array."""
        return {"op": "data", "x": to_serialize(self._arrays.of(message["nbytes"]))}

    async def _digest(self, message: dict) -> dict:
        return digest(message["x"])

    async def _usage(self, message: dict) -> dict:
        return {"cpu_seconds": cpu_seconds()}

    async def _memory(self, message: dict) -> dict:
        """Resident memory after garbage collection, and its peak so far, in bytes."""
        gc.collect()
        return {"memory_bytes": memory_bytes()}

    async def _set_hog(self, message: dict) -> dict:
        self._hog.set(message["on"])
        return {"op": "ack"}


class Asker:
    """Measures over comms to a `Responder`; each verb returns a dict with its ``seconds``.

    Parameters
    ----------
    address : str
        The address of the server.
    arguments : dict
        Other arguments of `connect`.
    hello : dict, optional
        The first message on every comm, if the server needs one.
    module : str
        The module of the arrays to send.
    """

    def __init__(
        self, address: str, arguments: dict, hello: dict | None = None, module: str = "numpy"
    ) -> None:
        self._address, self._arguments, self._hello = address, arguments, hello
        self._comms: list[Any] = []
        self._arrays = Arrays(module)
        self._hog = Hog()

    async def __aenter__(self) -> Asker:
        await self.comms(1)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._hog.set(False)
        for comm in self._comms:
            await comm.close()

    async def comms(self, count: int) -> list[Any]:
        """Give *count* open comms, which stay open for later calls."""
        while len(self._comms) < count:
            self._comms.append(await self._connect())
        return self._comms[:count]

    async def _connect(self) -> Any:
        comm = await connect(self._address, **self._arguments)
        if self._hello:
            await comm.write(self._hello)
        return comm

    async def ask(self, message: dict) -> dict:
        """Write one message on the first comm, and read the answer."""
        (comm,) = await self.comms(1)
        await comm.write(message)
        return await comm.read()

    async def ping(self, count: int) -> dict:
        """Round trips of a tiny message, one after the other."""
        (comm,) = await self.comms(1)
        read, write, now = comm.read, comm.write, time.perf_counter
        times = []
        for _ in range(count):
            begin = now()
            await write(PING)
            await read()
            times.append(now() - begin)
        return distribution(times)

    async def flood(self, count: int) -> dict:
        """Small messages one way, until the last is acknowledged."""
        (comm,) = await self.comms(1)
        write = comm.write
        await write({"op": "flood", "count": count})
        begin = time.perf_counter()
        for _ in range(count):
            await write(SMALL)
        await comm.read()
        return {"seconds": time.perf_counter() - begin}

    async def send(self, count: int, nbytes: int, comms: int = 1) -> dict:
        """Arrays one way, each answered by a small message, on *comms* parallel comms."""
        message = {"op": "data", "x": to_serialize(self._arrays.of(nbytes))}
        return await self._on_each(comms, count, message, None)

    async def exchange(self, count: int, nbytes: int, comms: int = 1) -> dict:
        """Arrays both ways at the same time, on *comms* parallel comms for each direction."""
        message = {"op": "data", "x": to_serialize(self._arrays.of(nbytes))}
        return await self._on_each(comms, count, message, {"op": "give", "nbytes": nbytes})

    async def fetch(self, count: int, nbytes: int, comms: int = 1) -> dict:
        """Arrays of the other side, each requested by a small message."""
        return await self._on_each(comms, count, {"op": "give", "nbytes": nbytes}, None)

    async def arrives(self, nbytes: int) -> dict:
        """Whether an array arrives unchanged, and in the same kind of memory."""
        array = self._arrays.of(nbytes)
        received = await self.ask({"op": "digest", "x": to_serialize(array)})
        return {"same": received == digest(array)}

    async def _on_each(self, comms: int, count: int, one: dict, other: dict | None) -> dict:
        """Write a message *count* times on every comm; two messages need twice as many comms."""

        async def repeat(comm: Any, message: dict) -> None:
            read, write = comm.read, comm.write
            for _ in range(count):
                await write(message)
                await read()  # the answer is freed at once

        kinds = [one] if other is None else [one, other]
        opened = await self.comms(comms * len(kinds))
        begin = time.perf_counter()
        await asyncio.gather(*(repeat(c, kinds[i % len(kinds)]) for i, c in enumerate(opened)))
        return {"seconds": time.perf_counter() - begin}

    async def cpu(self, count: int, nbytes: int) -> dict:
        """As `send`, but the seconds are CPU time of both processes."""
        before = cpu_seconds() + (await self.ask({"op": "usage"}))["cpu_seconds"]
        sent = await self.send(count, nbytes)
        after = cpu_seconds() + (await self.ask({"op": "usage"}))["cpu_seconds"]
        return {"seconds": after - before, "elapsed": sent["seconds"]}

    async def connects(self, count: int, at_once: int = 1) -> dict:
        """Connections opened (with Dask's handshake) and closed, *at_once* at a time."""
        left = iter(range(count))

        async def storm() -> None:
            for _ in left:
                comm = await self._connect()
                await comm.close()

        begin = time.perf_counter()
        await asyncio.gather(*(storm() for _ in range(at_once)))
        return {"seconds": time.perf_counter() - begin}

    async def memory(self) -> dict:
        """Resident memory of the receiver now, and its peak so far."""
        return await self.ask({"op": "memory"})

    async def do(self, verb: str, arguments: dict, hog: Sequence[bool] = (False, False)) -> dict:
        """Run a verb, with or without a thread of pure Python on this and on the other side."""
        if not any(hog):
            return await getattr(self, verb)(**arguments)
        here, there = hog
        await self.ask({"op": "hog", "on": there})
        self._hog.set(here)
        try:
            return await getattr(self, verb)(**arguments)
        finally:
            self._hog.set(False)
            await self.ask({"op": "hog", "on": False})

    async def paths(self) -> dict:
        """The path that has carried most, and why not others, if the scheme has statistics."""
        (comm,) = await self.comms(1)
        figures = comm.statistics() if hasattr(comm, "statistics") else {}
        names = ("control_stream", "refused", "flows")
        known = {name: figures[name] for name in names if name in figures}
        traffic = figures.get("traffic", {})
        moved = {path: of["bytes_sent"] + of["bytes_received"] for path, of in traffic.items()}
        path = max(moved, key=moved.__getitem__, default=None)
        return {**known, "path": path, "encrypted": bool(comm.extra_info.get("cipher"))}


async def serve(config: dict, answer: Any) -> None:
    """Listen on the scheme, print the address, and serve until standard input ends."""
    security, module = config["security"], config["module"]
    options = Security(**security).get_listen_args("scheduler") if security else {}
    address = f"{config['scheme']}://{config['host']}:0"
    arrays = Arrays(module)
    async with listen(address, lambda comm: Responder(comm, arrays).run(), **options) as listener:
        answer(listener.contact_address)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def measure(config: dict, answer: Any) -> None:
    """Answer each line of standard input."""
    security = config["security"]
    options = Security(**security).get_connection_args("client") if security else {}
    async with Asker(config["address"], options, module=config["module"]) as asker:
        answer("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            question = json.loads(line)
            gc.collect()
            answer(await asker.do(*question))


def run(coroutine: Any, uvloop: bool) -> None:
    if uvloop:
        import uvloop as loops

        loops.run(coroutine)
    else:
        asyncio.run(coroutine)


def be_a_worker() -> None:
    """Have this thread make arrays as tasks of workers do, in memory that every path takes."""
    try:
        from dask_fabric import config, providers
    except ImportError:  # another Python, without this package
        return
    for provider in providers.found():
        provider.serve(config.load().of_path(provider.name), 0, True)


def end_with_parent() -> None:
    """Have the kernel kill this process with its parent: while stopped it cannot see stdin end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Run as the server or the client, according to the first line of standard input."""
    end_with_parent()
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library must not be mistaken for an answer

    def answer(content: Any) -> None:
        output.write(json.dumps(content) + "\n")
        output.flush()

    config = json.loads(sys.stdin.readline())
    Arrays(config["module"]).of(1)  # creates a GPU's context before anything is timed
    be_a_worker()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        if "address" in config:
            run(measure(config, answer), config["uvloop"])
        else:
            run(serve(config, answer), config["uvloop"])


if __name__ == "__main__":
    main()

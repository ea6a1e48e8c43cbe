"""A process that keeps arrays, changes them, and passes them on, as a test tells it to."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import signal
import sys
import zlib

import dask
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

import dask_fabric

SETTINGS = {"fabric.shm.enabled": True, "fabric.shm.results": False}


def new_array(nbytes: int, value: int) -> np.ndarray:
    """An array in the memory file."""
    from dask_fabric.memory import arrays

    data = arrays.new_array(nbytes)
    data[:] = value
    return data


@functools.cache
def pattern(seed: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, "u1")


class Peer:
    def __init__(self) -> None:
        self.kept: dict[str, np.ndarray] = {}

    async def serve(self, comm) -> None:
        try:
            while True:
                request = await comm.read()
                reply = getattr(self, request.pop("op"))(**request)
                await comm.write(await reply if asyncio.iscoroutine(reply) else reply)
                del request, reply
        except OSError:
            pass

    def make(self, name: str, nbytes: int, value: int) -> dict:
        self.kept[name] = new_array(nbytes, value)
        return {}

    def paint(self, name: str, nbytes: int, seed: int, in_file: bool) -> dict:
        data = new_array(nbytes, 0) if in_file else np.empty(nbytes, "u1")
        data[:] = pattern(seed, nbytes)
        self.kept[name] = data
        return {}

    def digest(self, name: str) -> dict:
        return {"digest": zlib.crc32(self.kept[name])}

    def usage(self) -> dict:
        """What the process has, once it has freed what it can."""
        gc.collect()
        with open("/proc/self/maps") as maps, open("/proc/self/smaps_rollup") as rollup:
            sizes = dict(line.split()[:2] for line in rollup.read().splitlines()[1:])
            file_maps = sum("memfd:dask-fabric" in line for line in maps)
        return {
            "fds": len(os.listdir("/proc/self/fd")),
            "file_maps": file_maps,
            "pss_bytes": int(sizes["Pss:"]) * 1024,
            "huge_bytes": int(sizes["ShmemPmdMapped:"]) * 1024,
        }

    def keep(self, name: str, data) -> dict:
        self.kept[name] = data
        return {}

    def give(self, name: str) -> dict:
        return {"data": to_serialize(self.kept[name])}

    def write(self, name: str, index: int, value: int) -> dict:
        self.kept[name][index] = value
        return {}

    def look(self, name: str) -> dict:
        data = self.kept[name]
        values, counts = np.unique(data, return_counts=True)
        return {"values": values.tolist(), "counts": counts.tolist(), "nbytes": data.nbytes}

    def drop(self, name: str) -> dict:
        del self.kept[name]
        return {}

    async def fetch(self, name: str, address: str, new_name: str = "") -> dict:
        """Get an array of another process."""
        comm = await connect(address)
        await comm.write({"op": "give", "name": name})
        self.kept[new_name or name] = (await comm.read())["data"]
        traffic = comm.statistics()["traffic"]
        await comm.close()
        return {"path": [p for p, of in traffic.items() if of["frames_received"]]}

    def fork(self, outlives: bool = False) -> dict:
        """Have a child that waits, and tells what it sees of all that is kept."""
        mine, its = os.pipe()
        go, gone = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gone)
            if outlives:
                signal.pause()
            os.read(go, 1)
            seen = {name: int(data.max()) for name, data in self.kept.items()}
            os.write(its, json.dumps(seen).encode())
            os._exit(0)
        os.close(its)
        os.close(go)
        self.child = pid, mine, gone
        return {"pid": pid}

    def child_sees(self) -> dict:
        pid, mine, gone = self.child
        os.write(gone, b"x")
        seen = json.loads(os.read(mine, 65536))
        os.waitpid(pid, 0)
        os.close(mine)
        os.close(gone)
        return {"seen": seen}

    def statistics(self) -> dict:
        return dask_fabric.statistics()["shm"] or {}


async def main() -> None:
    with dask.config.set({**SETTINGS, **json.loads(sys.argv[1])}):
        async with listen("fabric://127.0.0.1", Peer().serve) as listener:
            print(listener.contact_address, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())

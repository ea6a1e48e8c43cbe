"""Functions that the workers of a cluster run to measure links between them.

They are sent by `Client.run`, pickled by value, so workers need not have this package installed;
therefore this module imports only `agent` from it. Each worker answers by a temporary handler of
its own server. So address, encryption and path are the same as for fetches between workers.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from typing import Any

from dask_fabric.bench.agent import Arrays, Asker, Responder

OPERATION = "dask-fabric-bench"
_HELLO = {"op": OPERATION, "reply": False}
_WARM_UP_COUNT = 10
_FLOWS_COUNT = 24  # arrays, until it is known how many connections pay; they are 8 at most
_LEAST_COUNT = 2
_MOST_COUNT = 20


async def prepare(module: str, dask_worker: Any) -> dict[str, Any]:
    """Have a worker answer with arrays of this module; describe the worker."""
    arrays = Arrays(module)  # shared by all comms: each measurement opens new ones

    async def respond(comm: Any) -> None:
        await Responder(comm, arrays).run()

    dask_worker.handlers[OPERATION] = respond
    with open("/proc/sys/kernel/random/boot_id") as file:
        machine = file.read().strip()
    return {
        "name": str(dask_worker.name),
        "address": dask_worker.address,
        "host": platform.node(),
        "place": f"{machine} {os.stat('/proc/self/ns/net').st_ino}",
    }


async def restore(dask_worker: Any) -> None:
    """Undo `prepare`."""
    dask_worker.handlers.pop(OPERATION, None)


async def ask(
    peer: str, question: list, module: str, patience_seconds: float, dask_worker: Any
) -> dict[str, Any]:
    """Call `Asker.do` with another worker."""
    return await asyncio.wait_for(_ask(peer, question, module, dask_worker), patience_seconds)


async def _ask(peer: str, question: list, module: str, dask_worker: Any) -> dict[str, Any]:
    async with Asker(peer, dask_worker.connection_args, _HELLO, module) as asker:
        return await asker.do(*question)


async def measure_link(
    partners: dict[str, str],
    nbytes: int,
    round_trip_count: int,
    seconds: float,
    patience_seconds: float,
    dask_worker: Any,
) -> dict[str, Any]:
    """Measure the link to this worker's partner of the round, or give an error."""
    peer = partners[dask_worker.address]
    work = _measure_link(peer, nbytes, round_trip_count, seconds, dask_worker)
    try:
        return await asyncio.wait_for(work, patience_seconds)
    except asyncio.TimeoutError:
        return {"error": f"it was not measured within {patience_seconds:g} seconds"}
    except Exception as exc:
        cause = exc.__cause__ or exc  # Dask's own error only has the time that it tried
        return {"error": str(cause) or type(cause).__name__}


async def _measure_link(
    peer: str, nbytes: int, round_trip_count: int, seconds: float, dask_worker: Any
) -> dict[str, Any]:
    async with Asker(peer, dask_worker.connection_args, _HELLO) as asker:
        await asker.ping(_WARM_UP_COUNT)
        trips = await asker.ping(round_trip_count)
        await _settle(asker, nbytes, seconds)
        return {
            "round_trip_seconds": trips["quantiles"]["p50"],
            "there_bytes_per_second": nbytes / await _repeat(asker.send, nbytes, seconds),
            "back_bytes_per_second": nbytes / await _repeat(asker.fetch, nbytes, seconds),
            **await asker.paths(),
        }


async def _settle(asker: Asker, nbytes: int, seconds: float) -> None:
    """Move arrays until the comm knows how many connections it is best to use to this peer.

    After ten times the time for one direction, go on only if several were faster than one.
    """
    deadline = time.perf_counter() + 10 * seconds
    for _ in range(_FLOWS_COUNT):
        await asker.fetch(1, nbytes)
        flows = (await asker.paths()).get("flows") or {"rates": (), "is_settled": True}
        is_late = time.perf_counter() > deadline and len(flows["rates"]) < 2
        if flows["is_settled"] or is_late:
            break


async def _repeat(verb: Any, nbytes: int, seconds: float) -> float:
    """Give the median time of one array, over about *seconds*, after a warm-up."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) <= _LEAST_COUNT or (
        time.perf_counter() < deadline and len(times) < _MOST_COUNT
    ):
        times.append((await verb(1, nbytes))["seconds"])
    return statistics.median(times[1:])

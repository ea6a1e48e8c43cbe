"""``dask fabric top``: the current traffic of a cluster, repeatedly."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from dask.utils import format_bytes
from distributed import Client

from dask_fabric.comm.network.reachability import reach
from dask_fabric.telemetry import waits
from dask_fabric.telemetry.cluster.processes import Collector, Process
from dask_fabric.telemetry.cluster.rates import Pair, Rate, rates, slowest
from dask_fabric.text_table import table
from dask_fabric.wire.text import one_line

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_HEAD = ("process", "path", "received/s", "sent/s", "messages/s", "fallbacks")


async def watch(
    address: str, interval_seconds: float, once: bool, show: Callable[[dict[str, Any]], None]
) -> None:
    """Sample a cluster repeatedly.

    Parameters
    ----------
    address : str
        The address of the scheduler, with any scheme.
    interval_seconds : float
        The time between two samples.
    once : bool
        Whether to stop after one interval.
    show : callable
        Called with the `summary` of each interval.
    """
    await reach(address, _CONNECT_SECONDS)
    async with Client(
        address, asynchronous=True, set_as_default=False, timeout=_CONNECT_SECONDS
    ) as client:
        collector = Collector(client)
        before, began = await _look(collector), time.monotonic()
        while True:
            await asyncio.sleep(interval_seconds)
            after, now = await _look(collector), time.monotonic()
            show(summary(before, after, now - began))
            if once:
                return
            before, began = after, now


async def _look(collector: Collector) -> list[Process]:
    return await asyncio.wait_for(collector.collect(), _ANSWER_SECONDS)


def summary(before: Sequence[Process], after: Sequence[Process], seconds: float) -> dict[str, Any]:
    """Give rates, the slowest pairs, and the processes without a report."""
    return {
        "seconds": seconds,
        "rates": rates(before, after, seconds),
        "slowest": slowest(after),
        "silent": {process.name: process.reason for process in after if process.rows is None},
        "idle": [process.name for process in after if process.rows == []],
    }


def as_json(found: dict[str, Any]) -> str:
    """Write a summary as one line of JSON."""
    return json.dumps(found, default=dataclasses.asdict)


def as_text(found: dict[str, Any], width: int) -> str:
    """Write a summary as tables."""
    lines = [
        f"Over {found['seconds']:.1f} s. Waits are seconds per second, of all transfers together.",
        "",
        *_rates(found["rates"]),
        "",
        "Slowest pairs since their start, by bulk transfers",
        *_slowest(found["slowest"]),
        "",
        *_left_out(found),
    ]
    return "\n".join(line[:width] for line in lines)


def _rates(found: Sequence[Rate]) -> list[str]:
    if not found:
        return ["No process has had a comm of dask-fabric."]
    busiest = sorted(
        found, key=lambda rate: -rate.sent_bytes_per_second - rate.received_bytes_per_second
    )
    rows = [
        (
            f"{rate.role} {rate.process}",
            rate.path,
            format_bytes(int(rate.received_bytes_per_second)),
            format_bytes(int(rate.sent_bytes_per_second)),
            f"{rate.messages_per_second:.0f}",
            str(rate.fallbacks),
            *(f"{rate.waits[wait.name]:.2f}" for wait in waits.ALL),
        )
        for rate in busiest
    ]
    return table([(*_HEAD, *(wait.column for wait in waits.ALL)), *rows])


def _slowest(pairs: Sequence[Pair]) -> list[str]:
    if not pairs:
        return ["No pair has had enough traffic yet."]
    rows = [
        (
            pair.process,
            f"from {pair.peer}",
            pair.path,
            format_bytes(pair.received_bytes),
            f"{format_bytes(int(pair.bytes_per_second))}/s",
        )
        for pair in pairs
    ]
    return table(rows)


def _left_out(found: dict[str, Any]) -> list[str]:
    lines = [f"{name} sends no report: {reason}" for name, reason in found["silent"].items()]
    lines += [f"{name} has had no comm of dask-fabric" for name in found["idle"]]
    return [one_line(line) for line in lines]

"""Data that a user may change after a call is sent as it was at the call."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from distributed import Client, Scheduler, Worker
from distributed.protocol import Serialized, serialize, to_serialize

from dask_fabric.comm.serialize import snapshots

from ..conftest import NO_DASHBOARD
from .pairs import opened_pair

SIZES = (100, 100_000, 300_000, 3_000_000, 30_000_000)


@pytest.fixture(params=["fabric", "fabric+tcp"])
async def pair(request):
    async with opened_pair(request.param) as pair:
        yield pair


def graph_of(x):
    return [{"op": "heartbeat"}, {"op": "update-graph", "expr_ser": Serialized(*serialize(x))}]


MESSAGES = {
    "graph": (graph_of, lambda message: message[1]["expr_ser"]),
    "method": (
        lambda x: {"op": "actor_execute", "args": [to_serialize(x)]},
        lambda message: message["args"][0],
    ),
    "method by the scheduler": (
        lambda x: {"op": "proxy", "msg": {"op": "actor_execute", "args": [to_serialize(x)]}},
        lambda message: message["msg"]["args"][0],
    ),
}


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize(("make", "find"), MESSAGES.values(), ids=MESSAGES.keys())
async def test_arguments_are_sent_as_they_were_when_written(pair, make, find, nbytes):
    a, b = pair
    x = np.zeros(nbytes, "u1")
    await a.write(make(x))
    x[:] = 7
    assert not find(await b.read()).any()


async def test_results_are_not_copied(pair):
    frames = [memoryview(bytearray(10)), b"bytes"]
    for message in (
        {"status": "OK", "data": {}},
        [{"op": "compute-task"}],
        {"op": "update_data"},
        "text",
    ):
        assert snapshots.snapshot(message, frames) is frames


def test_immutable_frames_are_not_copied_and_too_large_ones_neither(monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_BYTES", 10)
    message = [{"op": "update-graph"}]
    pickled, memory = b"a pickle of more", memoryview(bytearray(b"0123456789"))
    copied = snapshots.snapshot(message, [pickled, memory])
    assert copied[0] is pickled
    assert copied[1] is not memory and copied[1] == memory
    frames = [memory, bytearray(1)]
    assert snapshots.snapshot(message, frames) is frames


async def test_an_argument_that_is_changed_while_the_scheduler_is_busy():
    async with (
        Scheduler(protocol="fabric", host="127.0.0.1", port=0, **NO_DASHBOARD) as s,
        Worker(s.address, nthreads=1, memory_limit=0),
        Client(s.address, asynchronous=True) as client,
    ):
        sent = client.scheduler_comm.comm
        x = np.zeros(1_000_000, "u1")
        total = client.submit(np.sum, x)
        while sent.statistics()["bytes_sent"] < x.nbytes:
            await asyncio.sleep(0)
        x[:] = 7  # written, and the scheduler has not come to it
        assert await total == 0

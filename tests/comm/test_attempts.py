"""Failed attempts to connect: what is logged, and how often the connector retries."""

from __future__ import annotations

import asyncio

import pytest
from distributed.comm.core import CommClosedError, FatalCommClosedError

from dask_fabric.comm.network import attempts as module
from dask_fabric.comm.network.attempts import Attempts
from dask_fabric.errors import RefusedError

ADDRESS = "fabric://192.0.2.1:8786"
LASTING = FatalCommClosedError(f"in {ADDRESS}: the server speaks\nHTTP")
PASSING = CommClosedError(f"in {ADDRESS}: reset")


class Clock:
    """A clock that advances with each sleep, and by the test."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    return clock


@pytest.fixture
def attempts(clock):
    return Attempts()


async def test_what_does_not_mend_itself_is_said_once_and_tried_less_and_less(
    attempts, clock, caplog
):
    for _ in range(10):
        await attempts.pause(ADDRESS)
        attempts.failed(ADDRESS, LASTING)
    assert caplog.messages == [f"Cannot connect to {ADDRESS}: the server speaks HTTP"]
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    clock.now += 5
    await attempts.pause(ADDRESS)
    assert len(clock.slept) == 9
    attempts.succeeded(ADDRESS)
    await attempts.pause(ADDRESS)
    attempts.failed(ADDRESS, LASTING)
    assert len(clock.slept) == 9 and len(caplog.messages) == 2


async def test_reasons_that_alternate_are_said_once_each(attempts, caplog):
    """Such as two servers behind one address, or a server that wants to fill the log."""
    other = FatalCommClosedError(f"in {ADDRESS}: the server refused the connection: 17")
    other.__cause__ = RefusedError("17")
    for _ in range(10):
        attempts.failed(ADDRESS, LASTING)
        attempts.failed(ADDRESS, other)
        attempts.silent(ADDRESS, 2.0)
    assert len(caplog.messages) == 3


async def test_what_may_pass_is_said_when_it_lasts_and_tried_as_before(attempts, clock, caplog):
    attempts.failed(ADDRESS, PASSING)
    clock.now += 0.9
    attempts.failed(ADDRESS, PASSING)
    assert not caplog.messages
    for _ in range(3):
        clock.now += 0.1
        attempts.failed(ADDRESS, PASSING)
        await attempts.pause(ADDRESS)
    assert caplog.messages == [f"Cannot connect to {ADDRESS}: reset"] and not clock.slept
    caplog.clear()
    clock.now += 3600
    attempts.failed(ADDRESS, PASSING)
    assert not caplog.messages


def test_another_reason_is_said_too(attempts, caplog):
    attempts.failed(ADDRESS, LASTING)
    attempts.silent(ADDRESS, 6.0)
    attempts.silent(ADDRESS, 6.0)
    assert len(caplog.messages) == 2 and "it sent nothing for 6.0 s" in caplog.messages[1]


def test_a_short_silence_is_no_news(attempts, caplog):
    attempts.silent(ADDRESS, 0.9)
    assert not caplog.messages


def test_only_so_many_addresses_are_kept(attempts, monkeypatch):
    monkeypatch.setattr(module, "_ADDRESS_LIMIT", 3)
    for number in range(9):
        attempts.failed(f"fabric://{number}", PASSING)
    assert list(attempts._troubles) == ["fabric://6", "fabric://7", "fabric://8"]

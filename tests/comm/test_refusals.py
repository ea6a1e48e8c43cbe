"""Log lines that strangers cause: one for each error, and few of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from dask_fabric.comm.network import refusals
from dask_fabric.comm.network.refusals import LINE_LIMIT, PERIOD_SECONDS, Refusals, describe


def test_closed_loops_are_not_kept():
    loops = [asyncio.new_event_loop() for _ in range(5)]
    for loop in loops:
        refusals.of(loop).warn("things", "One of them")
        loop.close()
    there = [weakref.ref(loop) for loop in loops]
    del loop, loops
    last = asyncio.new_event_loop()
    refusals.of(last)
    gc.collect()
    assert not any(loop() for loop in there)
    last.close()


logger = logging.getLogger("dask_fabric.test")


class Loop:
    """The part of an event loop that the log needs; `end_period` advances its time."""

    def __init__(self):
        self.timers = []

    def call_later(self, seconds, function, *args):
        assert seconds == PERIOD_SECONDS
        timer = Timer(function, args)
        self.timers.append(timer)
        return timer

    def end_period(self):
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.cancelled:
                timer.function(*timer.args)


class Timer:
    def __init__(self, function, args):
        self.function, self.args, self.cancelled = function, args, False

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def log(loop):
    return Refusals(logger, loop)


def test_the_first_lines_are_logged_and_the_rest_are_counted(loop, log, caplog):
    for number in range(LINE_LIMIT + 7):
        log.warn("connections were refused", "number %s", number)
    assert caplog.messages == [f"number {n}" for n in range(LINE_LIMIT)]
    loop.end_period()
    assert caplog.messages[LINE_LIMIT:] == ["7 more connections were refused in the last minute"]
    caplog.clear()
    log.warn("connections were refused", "again")
    loop.end_period()
    loop.end_period()
    assert caplog.messages == ["again"]


def test_each_kind_has_a_limit_of_its_own(loop, log, caplog):
    for _ in range(LINE_LIMIT + 1):
        log.warn("a", "a")
    log.warn("b", "b")
    assert caplog.messages[-1] == "b"
    log.close()
    assert caplog.messages[-1] == "1 more a in the last minute"
    assert all(timer.cancelled for timer in loop.timers)


def test_a_line_is_one_line_and_not_endless(log, caplog):
    log.warn("a", "%s", "x\n\x1b[2J" + "y" * 100_000)
    (record,) = caplog.records
    assert "\n" not in record.message and "\x1b" not in record.message
    assert len(record.message) <= 1000 and record.exc_info is None


def test_an_exception_is_one_line_with_its_place_and_its_traceback_is_for_debugging(log, caplog):
    try:
        raise ValueError("a\nb")
    except ValueError as exc:
        with caplog.at_level(logging.INFO, logger=logger.name):
            log.warn("a", "%s", describe(exc), exc=exc)
        assert len(caplog.records) == 1 and caplog.records[0].exc_info is None
        assert "ValueError: a b (test_refusals.py, line" in caplog.messages[0]
        with caplog.at_level(logging.DEBUG, logger=logger.name):
            log.warn("a", "%s", describe(exc), exc=exc)
        assert caplog.records[1].exc_info[1] is exc


def test_a_forked_child_counts_from_zero(loop, log, caplog):
    for _ in range(LINE_LIMIT + 1):
        log.warn("a", "a")
    log.forked()
    log.close()
    assert len(caplog.messages) == LINE_LIMIT


async def test_comms_of_a_loop_share_one_log():
    import asyncio

    loop = asyncio.get_running_loop()
    assert refusals.of(loop) is refusals.of(loop)

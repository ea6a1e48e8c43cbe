"""Busy polling: for which replies a loop stays awake."""

import asyncio
import itertools
import time

import pytest

from dask_fabric.engine.busy_poll import BusyPoll

LONG_SECONDS = 1000.0
NO_TIME_SECONDS = 1e-9


class Loop:
    """Collects what it shall call."""

    def __init__(self):
        self.soon = []

    def call_soon(self, callback):
        self.soon.append(callback)

    def turn(self):
        """Make one round; whether it was to be made at once."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        return bool(soon)


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
async def answer():
    return asyncio.get_running_loop().create_future()


async def test_a_loop_stays_awake_until_the_answer(loop, answer):
    BusyPoll(loop, LONG_SECONDS).wait(answer)
    assert all(loop.turn() for _ in range(100))
    answer.set_result(None)
    assert loop.turn()
    assert not loop.turn()


async def test_one_question_after_the_other_makes_one_callback(loop, answer):
    poll = BusyPoll(loop, LONG_SECONDS)
    for _ in range(10):
        poll.wait(answer)
        poll.answered()
    assert len(loop.soon) == 1


async def test_a_loop_sleeps_when_the_time_is_over(loop, answer):
    BusyPoll(loop, NO_TIME_SECONDS).wait(answer)
    assert loop.turn()
    assert not loop.turn()


async def test_without_patience_it_always_sleeps(loop, answer):
    poll = BusyPoll(loop, 0)
    for _ in range(100):
        poll.wait(answer)
        assert not loop.soon


def late(loop, poll, answer):
    """Wait for a late reply; give whether the loop stayed awake for some of the time."""
    poll.wait(answer)
    is_awake = loop.turn()
    while loop.turn():
        pass
    poll.answered()
    return is_awake


async def test_late_answers_are_tried_for_ever_more_rarely(loop, answer):
    poll = BusyPoll(loop, 1e-6)
    awake = [index for index in range(5000) if late(loop, poll, answer)]
    assert 2 <= len(awake) <= 20
    gaps = [after - before for before, after in itertools.pairwise(awake[-4:])]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 1000


def quick(loop, poll):
    """Wait for what comes at once, but late to who has to be woken; whether it was awake."""
    answer = asyncio.get_running_loop().create_future()
    poll.wait(answer)
    is_awake = bool(loop.soon)
    if not is_awake:
        time.sleep(1e-3)
    poll.answered()
    answer.set_result(None)
    loop.turn()
    return is_awake


async def test_quick_answers_are_nearly_always_awaited_awake(loop):
    poll = BusyPoll(loop, 10e-3)
    assert sum(quick(loop, poll) for _ in range(320)) > 250


async def test_what_mostly_comes_at_once_is_not_awaited_for_long(loop, answer):
    """It may need the CPU of who waits."""
    poll = BusyPoll(loop, LONG_SECONDS)
    for _ in range(100):
        quick(loop, poll)
    begin = time.monotonic()
    poll.wait(answer)
    while loop.turn():
        assert time.monotonic() - begin < 60


async def test_one_quick_answer_leads_to_the_next_trial(loop, answer):
    poll = BusyPoll(loop, 10e-3)
    while late(loop, poll, answer):
        pass
    tried = [quick(loop, poll) for _ in range(100)]
    assert all(tried[tried.index(True) :][:10])

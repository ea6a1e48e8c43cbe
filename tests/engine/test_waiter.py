"""The waiter of a message: like a future for the task, which resumes at once."""

import asyncio
import contextvars

import pytest

from dask_fabric.engine.waiter import Waiter


@pytest.fixture
async def waiter():
    return Waiter(asyncio.get_running_loop())


async def awaiting(waiter, seen):
    seen.append(await waiter)


async def started(coroutine):
    """A task at its first `await`."""
    task = asyncio.get_running_loop().create_task(coroutine)
    await asyncio.sleep(0)
    return task


async def in_a_callback(function, *arguments):
    """Call it from the loop, outside any task, like the callback of a socket."""
    called = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: called.set_result(function(*arguments)))
    return await called


async def test_a_task_goes_on_within_the_callback(waiter):
    seen = []
    await started(awaiting(waiter, seen))

    def arrive():
        waiter.set_result("message")
        return list(seen)

    assert await in_a_callback(arrive) == ["message"]


async def test_a_task_waits_while_another_runs(waiter):
    seen = []
    task = await started(awaiting(waiter, seen))
    waiter.set_result("message")
    assert seen == []
    await task
    assert seen == ["message"]


async def test_what_is_there_is_not_waited_for(waiter):
    waiter.set_result((b"header", []))
    assert await waiter == (b"header", [])


async def test_only_the_first_outcome_counts(waiter):
    waiter.set_result(1)
    waiter.set_result(2)
    waiter.set_exception(OSError())
    assert not waiter.cancel()
    assert waiter.result() == await waiter == 1


@pytest.mark.parametrize("early", [True, False])
async def test_an_exception(waiter, early):
    if early:
        waiter.set_exception(OSError("lost"))
    task = await started(awaiting(waiter, []))
    if not early:
        await in_a_callback(waiter.set_exception, OSError("lost"))
    with pytest.raises(OSError, match="lost"):
        await task


async def test_a_cancelled_task_cancels_it(waiter):
    task = await started(awaiting(waiter, []))
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiter.done() and waiter.cancelled()
    waiter.set_result("late")
    with pytest.raises(asyncio.CancelledError):
        waiter.result()


async def test_as_other_futures(waiter):
    assert asyncio.isfuture(waiter)
    with pytest.raises(asyncio.InvalidStateError):
        waiter.result()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(waiter, 0.01)
    assert waiter.cancelled()
    second = Waiter(asyncio.get_running_loop())
    asyncio.get_running_loop().call_soon(second.set_result, 1)
    assert await asyncio.wait_for(asyncio.gather(second), 30) == [1]


async def test_one_callback(waiter):
    waiter.add_done_callback(print)
    with pytest.raises(RuntimeError, match="one task at a time"):
        waiter.add_done_callback(print)
    assert waiter.remove_done_callback(repr) == 0
    assert waiter.remove_done_callback(print) == 1
    waiter.set_result(None)


async def test_the_context_is_the_task_s(waiter):
    variable = contextvars.ContextVar("variable", default="loop")
    seen = []

    async def look():
        variable.set("task")
        await waiter
        seen.append(variable.get())

    await started(look())
    await in_a_callback(waiter.set_result, None)
    assert seen == ["task"] and variable.get() == "loop"

"""A message above `fabric.limits.message`: the waiting task soon gets an error that names it."""

from __future__ import annotations

import asyncio
import contextlib
import warnings

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, Variable, Worker, WorkerPlugin, wait
from distributed.comm import connect, listen
from distributed.protocol import Serialize, to_serialize

from dask_fabric.comm.serialize.too_large import Pauses, instead_of
from dask_fabric.errors import MessageTooLargeError

from ..conftest import LOCAL_CLUSTER, NO_DASHBOARD

MEBI = 1 << 20
LARGE = 4 * MEBI
SMALL = {"fabric.limits.message": "1 MiB"}
TOO_LARGE = rf"message of 4\d{{6}} bytes; .* accepts {MEBI} .*fabric\.limits\.message"
SECONDS = 20  # against a hang, not a measure: of each below, 0.1 s is usual


def lines_in(log: str) -> int:
    """Count lines, without those in which Python 3.13 marks a part of the line before."""
    return sum(bool(line.strip(" ^~")) for line in log.splitlines())


class Stage:
    """A scheduler, workers and a client in this process."""

    def __init__(self, scheduler, workers, client):
        self.scheduler, self.workers, self.client = scheduler, workers, client

    def on(self, index):
        return [self.workers[index].address]

    async def still_works(self):
        total = self.client.submit(sum, [1, 2], pure=False)
        assert await asyncio.wait_for(total, SECONDS) == 3
        assert len(self.scheduler.workers) == len(self.workers)


@contextlib.asynccontextmanager
async def a_stage(scheduler=None, workers=None, client=None):
    """Give each side a configuration of its own, which its peers learn at connect."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(config, make):
            with dask.config.set(config or {}):
                return await stack.enter_async_context(make())

        s = await start(
            scheduler,
            lambda: Scheduler(protocol="fabric", host="127.0.0.1", port=0, **NO_DASHBOARD),
        )
        ws = [
            await start(workers, lambda: Worker(s.address, nthreads=1, memory_limit=0))
            for _ in range(2)
        ]
        c = await start(client, lambda: Client(s.address, asynchronous=True))
        yield Stage(s, ws, c)


@pytest.fixture
async def small():
    """Nobody takes more than 1 MiB."""
    with dask.config.set(SMALL):
        async with a_stage() as stage:
            yield stage


async def fails(awaitable, match=TOO_LARGE):
    with pytest.raises(MessageTooLargeError, match=match):
        await asyncio.wait_for(awaitable, SECONDS)


@pytest.mark.parametrize("direct", [False, True])
async def test_a_result(small, direct, caplog):
    x = small.client.submit(bytes, LARGE, workers=small.on(0))
    await wait(x)
    caplog.clear()
    await fails(small.client.gather([x, x], direct=direct))
    assert lines_in(caplog.text) < 20, caplog.text
    assert await small.client.submit(len, x, workers=small.on(0)) == LARGE  # it is where it was
    await small.still_works()


class SlowlyPickled:
    """Waits for the event loop while it is pickled again, to find out what is too large."""

    def __init__(self, loop):
        self.loop, self.count = loop, 0

    def __reduce__(self):
        self.count += 1
        if self.count > 1:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(SECONDS)
        return bytes, (bytes(LARGE),)


async def test_the_event_loop_goes_on_while_an_error_is_made():
    """A value that takes long to serialize, such as a list, takes as long again."""
    accepted = asyncio.Queue()
    with dask.config.set(SMALL):
        async with listen("fabric://127.0.0.1", accepted.put) as listener:
            near = await connect(listener.contact_address)
            far = await accepted.get()
            values = [SlowlyPickled(asyncio.get_running_loop()) for _ in range(2)]
            data = {f"key-{n}": to_serialize(value) for n, value in enumerate(values)}
            writing = far.write({"status": "OK", "data": data}, on_error="message")
            await asyncio.wait_for(writing, SECONDS)
            await fails(near.read(), "it has the value of 'key-")
            near.abort()
            far.abort()
    assert [value.count > 1 for value in values] == [True, True]


async def test_results_that_are_too_large_together(small):
    xs = small.client.map(bytes, [MEBI // 2 + n for n in range(4)])
    await fails(small.client.gather(xs), r"fabric\.limits\.message")
    assert [len(await x) for x in xs] == [MEBI // 2 + n for n in range(4)]
    await small.still_works()


async def test_a_dependency(small, caplog):
    x = small.client.submit(bytes, LARGE, workers=small.on(0))
    await wait(x)
    caplog.clear()
    for _ in range(2):
        task = small.client.submit(len, x, workers=small.on(1), pure=False)
        await fails(task, f"{TOO_LARGE}.*{x.key}")
    assert len(caplog.text.splitlines()) < 40, caplog.text
    assert await small.client.submit(len, x, workers=small.on(0)) == LARGE
    # The two workers still exchange what they can, over the same comm.
    y = small.client.submit(bytes, 5, workers=small.on(0))
    assert await small.client.submit(len, y, workers=small.on(1)) == 5
    await small.still_works()


async def test_an_argument(small, caplog):
    others = small.client.map(str, range(5))
    await fails(small.client.submit(len, bytes(LARGE)))
    more = small.client.map(str, range(5, 10))
    assert await small.client.gather(others + more) == list("0123456789")
    assert lines_in(caplog.text) < 20, caplog.text
    await small.still_works()


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("direct", [False, True])
async def test_what_is_scattered(small, broadcast, direct):
    await fails(small.client.scatter(bytes(LARGE), broadcast=broadcast, direct=direct))
    await small.still_works()


async def test_a_function_that_runs_everywhere(small):
    await fails(small.client.run(bytes, LARGE))
    await fails(small.client.run(len, bytes(LARGE)))
    await fails(small.client.run_on_scheduler(bytes, LARGE))
    await small.still_works()


class Holder:
    def give(self, nbytes):
        return bytes(nbytes)

    def take(self, data):
        return len(data)

    def fail(self):
        fail()


async def test_an_actor(small):
    actor = await small.client.submit(Holder, actor=True)
    await fails(actor.give(LARGE))
    await fails(actor.take(bytes(LARGE)))
    assert await actor.take(b"abc") == 3
    await small.still_works()


async def test_an_actor_that_raises_what_is_too_large(small):
    actor = await small.client.submit(Holder, actor=True)
    await fails(actor.fail())
    assert await actor.take(b"abc") == 3


async def test_annotations_that_a_worker_refuses():
    async with a_stage(workers=SMALL) as stage:
        with dask.annotate(about="x" * LARGE):
            future = stage.client.submit(len, "abc", pure=False)
        await fails(future)
        await stage.still_works()


async def test_annotations_that_the_scheduler_refuses(small):
    done = small.client.submit(len, "abcd")
    assert await done == 4
    with dask.annotate(about="x" * LARGE):
        future = small.client.submit(len, "abc", pure=False)
    # The graph of distributed before 2025.4 has them too.
    await fails(future, match=r"message of \d{7} bytes; .*fabric\.limits\.message")
    assert await small.client.gather(done) == 4
    await small.still_works()


async def test_keys_of_many_tasks_are_released_in_parts():
    keys = [f"{'k' * 100}-{number}" for number in range(20_000)]
    message = {"op": "client-releases-keys", "keys": keys, "client": "c"}
    error = MessageTooLargeError("too large")
    first, second = instead_of([message], error, "raise", lambda _: False)
    assert [part["keys"] for (part,) in (first, second)] == [keys[:10_000], keys[10_000:]]
    assert first[0]["op"] == message["op"] and second[0]["client"] == "c"


async def test_numbers_as_a_reply():
    with dask.config.set({"fabric.limits.header": "100 KiB"}):
        async with a_stage() as stage:
            stage.scheduler.task_metadata["m"] = {str(n): n for n in range(20_000)}
            with pytest.raises(MessageTooLargeError, match=r"fabric\.limits\.header"):
                await asyncio.wait_for(stage.client.get_metadata("m"), SECONDS)
            stage.scheduler.task_metadata.clear()
            await stage.still_works()


def test_who_asks_again_and_again_waits_longer():
    pauses, now, waited = Pauses(), 0.0, []
    for _ in range(8):
        waited.append(pauses.next("a", now))
        now += waited[-1] + 0.01
    assert waited == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2]
    assert pauses.next("b", now) == 0
    assert pauses.next("a", now + 60) == 0
    for number in range(1000):
        pauses.next(str(number), now)
    assert pauses.next("a", now + 61) == 0  # forgotten among so many


async def test_replicas_that_are_refused_are_not_asked_for_all_the_time(small, monkeypatch):
    """Dask repeats the request endlessly (`Scheduler.replicate`)."""
    waited = asyncio.Queue()
    monkeypatch.setattr(Pauses, "next", lambda *_: waited.put_nowait(0) or 0.01)
    data = small.client.submit(bytes, LARGE, workers=small.on(0))
    await wait(data)
    replicating = asyncio.ensure_future(small.client.replicate([data]))
    for _ in range(3):
        await asyncio.wait_for(waited.get(), SECONDS)
    data.release()
    await asyncio.wait_for(replicating, SECONDS)
    await small.still_works()


def test_a_reply_of_many_payloads_is_not_tried_for_each():
    reply = {"status": "OK", "data": {str(n): Serialize(bytes(n)) for n in range(1000)}}
    tried = []
    instead_of(reply, MessageTooLargeError("too large"), "message", lambda m: tried.append(0))
    assert len(tried) < 20


class HeavyError(Exception):
    pass


def fail():
    error = HeavyError("x")
    error.data = bytes(LARGE)
    raise error


async def test_the_exception_of_a_task(small):
    await fails(small.client.submit(fail))
    await small.still_works()


async def test_calls_of_the_scheduler(small):
    variable = Variable("v", client=small.client)
    await fails(variable.set(bytes(LARGE)))
    await fails(small.client.set_metadata("m", bytes(LARGE)))
    small.scheduler.task_metadata["m"] = bytes(LARGE)
    await fails(small.client.get_metadata("m"))
    small.scheduler.task_metadata.clear()
    await small.still_works()


async def test_an_event_is_dropped_and_nothing_else(small, caplog):
    small.workers[0].log_event("topic", bytes(LARGE))
    small.workers[0].log_event("topic", "later")
    await small.still_works()
    while not (events := await small.client.get_events("topic")):
        await asyncio.sleep(0.01)
    assert [event for _, event in events] == ["later"]
    assert "fabric.limits.message" in caplog.text


async def test_many_tasks_whose_messages_are_sent_together(small):
    lengths = small.client.map(len, [bytes([n]) * 100_000 for n in range(50)], batch_size=5)
    assert sum(await small.client.gather(lengths)) == 5_000_000
    await small.still_works()


async def test_an_argument_that_only_the_worker_refuses():
    async with a_stage(workers=SMALL) as stage:
        others = stage.client.map(str, range(5))
        await fails(stage.client.submit(len, bytes(LARGE)))
        await fails(stage.client.scatter(bytes(LARGE)))
        assert await stage.client.gather(others) == list("01234")
        await stage.still_works()


async def test_a_result_that_only_the_client_refuses(caplog):
    async with a_stage(client=SMALL) as stage:
        x = stage.client.submit(bytes, LARGE)
        await wait(x)
        caplog.clear()
        await fails(stage.client.gather(x, direct=False))
        await fails(stage.client.run(bytes, LARGE), r"fabric\.limits\.message")
        assert await stage.client.submit(len, x) == LARGE
        assert lines_in(caplog.text) < 20, caplog.text
        await stage.still_works()


class Heavy(WorkerPlugin):
    name = "heavy"

    def __init__(self):
        self.data = bytes(LARGE)


async def test_a_worker_that_cannot_be_told_what_it_needs_does_not_join():
    async with a_stage() as stage:
        await stage.client.register_plugin(Heavy())
        with dask.config.set(SMALL), pytest.raises(RuntimeError) as caught:
            await asyncio.wait_for(Worker(stage.scheduler.address, memory_limit=0), SECONDS)
        assert "fabric.limits.message" in str(caught.value.__cause__)
        while len(stage.scheduler.workers) > 2:
            await asyncio.sleep(0.01)
        await stage.still_works()


def test_in_processes():
    """As users have it: every process reads the limit from its configuration."""
    with (
        warnings.catch_warnings(),
        dask.config.set({"fabric.limits.message": "10 MiB"}),
        LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric", **LOCAL_CLUSTER) as k,
        Client(k) as client,
    ):
        warnings.simplefilter("ignore")  # of a large graph
        a, b = client.scheduler_info(n_workers=-1)["workers"]
        x = client.submit(bytes, 100 * MEBI, workers=[a])
        for failing in (
            lambda: x.result(timeout=SECONDS),
            lambda: client.submit(len, x, workers=[b]).result(timeout=SECONDS),
            lambda: client.scatter(np.zeros(100 * MEBI, "u1")),
            lambda: client.submit(len, np.zeros(100 * MEBI, "u1")).result(timeout=SECONDS),
        ):
            with pytest.raises(MessageTooLargeError, match=r"fabric\.limits\.message"):
                failing()
        assert client.submit(len, x, pure=False).result(timeout=SECONDS) == 100 * MEBI

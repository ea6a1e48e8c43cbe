"""Libraries are looked for beside the event loop, and once."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import threading

import dask
import pytest
from distributed.comm import connect, listen

from dask_fabric import config
from dask_fabric.errors import LibraryError, UnavailableError
from dask_fabric.paths.ucx import local as ucx
from dask_fabric.paths.ucx.library import Choice, Library

from ..conftest import UCX_SCHEME

PATIENCE_SECONDS = 20
NOTHING = Choice(None, "there is none in this test")
numbers = itertools.count()


class Search:
    """Replaces `choose`: reports its start, and ends when the test allows it."""

    def __init__(self) -> None:
        self.count = 0
        self.outcome: Choice | Exception = NOTHING
        self._loop = asyncio.get_running_loop()
        self.began = asyncio.Event()
        self._released = threading.Event()

    def __call__(self, library, options):
        self.count += 1
        self._loop.call_soon_threadsafe(self.began.set)
        assert self._released.wait(PATIENCE_SECONDS), "the event loop stands still"
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def release(self) -> None:
        self._released.set()


@pytest.fixture
async def search(monkeypatch):
    """A search that nothing has been found by, under settings of its own."""
    search = Search()
    monkeypatch.setattr(ucx, "choose", search)
    own = {"fabric.ucx.enabled": True, "fabric.ucx.library": f"/test/{next(numbers)}"}
    with dask.config.set(own):
        yield search
        search.release()


async def ignore(comm):
    await comm.close()


async def test_the_loop_goes_on_while_a_listener_waits(search):
    listening = asyncio.ensure_future(listen("fabric://127.0.0.1", ignore))
    await search.began.wait()
    assert not listening.done()
    search.release()
    (await listening).stop()


async def test_the_loop_goes_on_while_a_client_waits(search):
    with dask.config.set({"fabric.ucx.enabled": False}):
        listener = await listen("fabric://127.0.0.1", ignore)
    connecting = asyncio.create_task(connect(listener.contact_address))
    await search.began.wait()
    assert not connecting.done()
    search.release()
    comm = await connecting
    assert "there is none in this test" in comm.refused_paths["ucx"]
    comm.abort()
    listener.stop()


async def test_the_loop_goes_on_while_ucx_starts(search, monkeypatch):
    begun, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def start(library, options, defaults):
        loop.call_soon_threadsafe(begun.set)
        assert released.wait(PATIENCE_SECONDS), "the event loop stands still"
        raise LibraryError("it does not start in this test", -1)

    monkeypatch.setattr(ucx.ucx, "start", start)
    search.outcome = Choice(Library("/test", "test", transports=("tcp/lo",)), "the only one")
    search.release()
    listening = asyncio.ensure_future(listen("fabric://127.0.0.1", ignore))
    await begun.wait()
    assert not listening.done()
    local, reason = ucx.local_ucx(config.load().paths.ucx, insists=False, wait=False)
    assert local is None and reason == "UCX is being started"
    released.set()
    listener = await listening
    comm = await connect(listener.contact_address)
    assert "it does not start in this test" in comm.refused_paths["ucx"]
    comm.abort()
    listener.stop()


async def test_what_may_pass_is_tried_again_after_a_while(search, monkeypatch):
    reasons = ["the GPU is full", ""]
    monkeypatch.setattr(ucx, "_bind_device", lambda: reasons.pop(0))
    monkeypatch.setattr(ucx.ucx, "start", lambda *_: None)
    monkeypatch.setattr(ucx.ucx, "address", lambda: bytes(1 << 16))
    search.outcome = Choice(Library("/test", "test"), "the only one")
    search.release()
    settings = config.load().paths.ucx
    assert ucx.local_ucx(settings, False) == (None, "the GPU is full")
    assert ucx.local_ucx(settings, False) == (None, "the GPU is full")
    monkeypatch.setattr(ucx.time, "monotonic", lambda: math.inf)
    assert "65536 bytes" in ucx.local_ucx(settings, False)[1]
    assert search.count == 2 and not reasons


async def test_it_is_done_once(search):
    waiting = [asyncio.ensure_future(listen("fabric://127.0.0.1", ignore)) for _ in range(3)]
    await search.began.wait()
    waiting.pop().cancel()  # which does not end it for the others
    search.release()
    listeners = [await listening for listening in waiting]
    comm = await connect(listeners[0].contact_address)
    assert search.count == 1
    comm.abort()
    for listener in listeners:
        listener.stop()


@pytest.mark.parametrize("enabled", [False, "auto"])
async def test_where_ucx_is_not_wanted_nothing_is_done(search, enabled, monkeypatch):
    monkeypatch.setattr(ucx, "_is_wanted", lambda *_: (False, "not wanted"))
    with dask.config.set({"fabric.ucx.enabled": enabled}):
        async with listen("fabric://127.0.0.1", ignore) as listener:
            (await connect(listener.contact_address)).abort()
    assert search.count == 0


async def test_a_scheme_of_the_stream_only_does_not_look(search):
    async with listen("fabric+tcp://127.0.0.1", ignore) as listener:
        (await connect(listener.contact_address)).abort()
    assert search.count == 0


async def test_what_went_wrong_is_told_to_whoever_asks(search):
    search.outcome = UnavailableError("broken in this test")
    search.release()
    async with listen("fabric://127.0.0.1", ignore) as listener:
        comm = await connect(listener.contact_address)
        assert "broken in this test" in comm.refused_paths["ucx"]
        comm.abort()
    with pytest.raises(UnavailableError, match="broken in this test"):
        await listen(f"{UCX_SCHEME}://127.0.0.1", ignore)
    assert search.count == 1


async def test_a_forked_child_does_not_wait_for_its_parents_search(search):
    listening = asyncio.ensure_future(listen("fabric://127.0.0.1", ignore))
    await search.began.wait()
    pid = os.fork()
    if pid == 0:
        search.release()
        local, reason = ucx.local_ucx(config.load().paths.ucx, insists=False)
        os._exit(0 if local is None and "there is none" in reason else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    search.release()
    (await listening).stop()

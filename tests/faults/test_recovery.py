"""A path that breaks is tried again after a while, on the same comm."""

from __future__ import annotations

import asyncio
import logging
import signal

import dask
import numpy as np
import pytest
from distributed.comm import listen
from distributed.utils import wait_for

from dask_fabric.engine import retries
from dask_fabric.paths.ofi import endpoint as ofi
from dask_fabric.paths.ucx import endpoint as ucx

from ..conftest import ofi_settings, ucx_params
from .conftest import PATIENCE_SECONDS, until

NBYTES = 4_000_000


@pytest.fixture(params=["ucx", "ofi"])
def way(request, monkeypatch):
    """A path whose frames need the peer's progress, and that waits for it only shortly."""
    if request.param == "ofi":
        settings = ofi_settings()
        monkeypatch.setattr(ofi, "STALLED_SECONDS", 0.3)
    elif ucx_params():
        settings = {"fabric.ucx.options": {"TLS": "tcp,self", "WARN_UNUSED_ENV_VARS": "n"}}
        monkeypatch.setattr(ucx, "PATIENCE_SECONDS", 0.3)
        monkeypatch.setattr(ucx, "GREETING_SECONDS", 0.2)
    else:
        pytest.skip("no UCX on this host")
    with dask.config.set(settings):
        yield request.param, settings


async def whole(comm) -> None:
    message = await wait_for(comm.read(), PATIENCE_SECONDS)
    assert np.array_equal(message["x"], np.ones(NBYTES, "u1"))


async def test_a_sender_that_stopped_for_a_while_uses_the_path_again(start_peer, way):
    path, settings = way
    accepted = asyncio.Queue()
    async with listen(f"fabric+{path}://127.0.0.1", accepted.put) as listener:
        peer = start_peer(
            "send_when_asked",
            listener.contact_address,
            message_bytes=NBYTES,
            config=settings,
            pause_seconds=0.2,
        )
        comm = await accepted.get()

        def came(figure: str = "bytes_received") -> int:
            return comm.statistics()["traffic"][path][figure]

        await whole(comm)
        assert came() == NBYTES
        await comm.write("more")
        for _ in range(2):
            assert await peer.line() == "written"
        peer.signal(signal.SIGSTOP)
        await peer.stopped()
        reading = asyncio.ensure_future(whole(comm))
        await until(lambda: came("fallbacks_received"))
        peer.signal(signal.SIGCONT)
        await reading
        assert came() == NBYTES  # the second went on the stream
        begin = asyncio.get_running_loop().time()
        while came() == NBYTES:
            assert asyncio.get_running_loop().time() - begin < 2 * PATIENCE_SECONDS
            await comm.write("more")
            await whole(comm)
        comm.abort()


async def test_pauses_double_until_the_path_has_worked_for_long(monkeypatch, caplog):
    """With a path and a channel of the test: each trial is told to fail, to wait, or to succeed."""
    pauses, told = [], []

    class Loop:
        def call_later(self, seconds, function, reference):
            pauses.append(seconds)
            self.next = lambda: function(reference)

    class Path:
        name, recovers, retries, offers = "some", True, None, False

        def retry(self):
            answer = told.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    class Channel:
        loop, closed = Loop(), False
        core = property(lambda self: self)
        paths = (Path(),)

        def warn(self, kind, text, *args):
            logging.getLogger("test").warning(text, *args)

        def addresses(self):
            return "here", "there"

        def resume_offering(self, path):
            path.offers = True

    channel = Channel()
    (path,) = channel.paths
    retries.broken(channel, path)
    assert "the path some is broken, and is tried again in 10 seconds" in caplog.text
    for answer in (-1.0, RuntimeError("in a test"), 3.0, 0.0):
        told.append(answer)
        channel.loop.next()
    assert pauses == [10, 20, 40, 3] and path.offers
    retries.broken(channel, path)  # it has worked for a moment only
    assert pauses[-1] == 80
    for _ in range(9):
        told.append(-1.0)
        channel.loop.next()
    assert pauses[-1] == 600
    told.append(0.0)
    channel.loop.next()
    monkeypatch.setattr(retries, "_STEADY_SECONDS", -1.0)
    retries.broken(channel, path)
    assert pauses[-1] == 10
    channel.closed = True
    channel.loop.next()  # asks nothing any more
    assert told == []

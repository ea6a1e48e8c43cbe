"""`FabricComm` over a stand-in for a channel: how errors are passed on."""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import SimpleNamespace

import pytest
from distributed.comm import CommClosedError
from distributed.protocol import to_serialize

from dask_fabric.comm import comm as module
from dask_fabric.comm.comm import FabricComm
from dask_fabric.config import load
from dask_fabric.errors import ChannelClosedError, ForkedError, LimitError, ProtocolError
from dask_fabric.paths.negotiation import Choice
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.metrics import Metrics


class FakeChannel:
    """A channel whose next operation fails with the given error."""

    local_sockname = ("127.0.0.1", 1)
    peer_sockname = ("127.0.0.1", 2)
    pending_bytes = queued_bytes = 0
    choice = Choice({"host": ("stream",)}, {})
    observer = None
    peer = Hello()

    def __init__(self, error=None):
        self.error = error
        self.closed = False
        self.sent = []
        self.core = SimpleNamespace(
            metrics=Metrics(), receives_devices=False, sends_devices=False, expect_first=int
        )
        self.server_side = False

    def receive_nowait(self):
        return None

    async def receive(self):
        raise self.error

    def send(self, header, frames):
        if self.error:
            raise self.error
        self.sent.append((header, frames))
        return len(header)

    def ended(self):
        return self.closed

    async def close(self, timeout_seconds):
        self.abort()
        if self.error:
            raise self.error

    def abort(self, error=None):
        if not self.closed:
            self.closed = True
            self.observer.closed(self)

    def figures(self):
        return {}

    def tcp_info(self):
        return b""

    def statistics(self):
        return {"traffic": {}}

    def check_open(self):
        if self.closed:
            raise ChannelClosedError("the comm was closed on this side")


def make_comm(error=None) -> FabricComm:
    comm = FabricComm(FakeChannel(error), "fabric://a:1", "fabric://b:2", True, load())
    comm._is_new = False  # as after Dask's handshake
    return comm


class Strange(BaseException):
    pass


CLOSING = [
    ChannelClosedError("the peer left"),
    ForkedError("belongs to the parent"),
    ProtocolError("nonsense"),
    LimitError("too much"),
    ConnectionResetError(104, "reset"),
    TimeoutError("timed out"),
    ssl.SSLError("bad record"),
]
PASSING = [BufferError("not contiguous"), Strange(), asyncio.CancelledError(), KeyboardInterrupt()]


@pytest.mark.parametrize("error", CLOSING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("verb", ["read", "write"])
async def test_what_ends_the_channel_is_commclosederror(error, verb):
    comm = make_comm(error)
    with pytest.raises(CommClosedError) as caught:
        await (comm.read() if verb == "read" else comm.write("x"))
    assert caught.value.__cause__ is error
    assert str(error) in str(caught.value)
    assert "fabric://b:2" in str(caught.value)
    assert comm.closed()


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("verb", ["read", "write"])
async def test_what_else_fails_passes_unchanged_and_closes(error, verb):
    comm = make_comm(error)
    with pytest.raises(type(error)) as caught:
        await (comm.read() if verb == "read" else comm.write("x"))
    assert caught.value is error
    assert comm.closed()


async def test_a_closed_comm_refuses_before_it_serializes():
    comm = make_comm()
    comm.abort()
    with pytest.raises(CommClosedError):
        await comm.write(object())


async def test_errors_while_closing_are_nobodys():
    comm = make_comm(ConnectionResetError(104, "reset"))
    await comm.close()
    assert comm.closed()


class Slow:
    """An encoding, and a codec, that do their work in the offload thread."""

    offload_bytes = 1 << 40
    payloads = ()
    saved_bytes = 0

    def begin(self, *args):
        return self

    def finish(self):
        return b"header", []


async def test_a_cancelled_offload_of_a_write_sends_nothing_and_aborts(monkeypatch):
    monkeypatch.setattr(module, "codec", Slow())
    comm = make_comm()
    task = asyncio.ensure_future(comm.write("x"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert comm.closed()
    assert comm._channel.sent == []


@pytest.mark.parametrize("threshold_bytes", [50, 1 << 20])
async def test_the_threshold_of_offloading_is_dask_s(monkeypatch, threshold_bytes):
    offloaded = []

    async def offload(function, *args):
        offloaded.append(function)
        return function(*args)

    slow = Slow()
    monkeypatch.setattr(module, "codec", slow)
    monkeypatch.setattr(module, "offload", offload)
    monkeypatch.setattr(module.comm_utils, "OFFLOAD_THRESHOLD", threshold_bytes)
    comm = make_comm()
    for work_bytes in (0, threshold_bytes, threshold_bytes + 1):
        slow.offload_bytes = work_bytes
        assert not offloaded
        await comm.write("x")
    assert len(offloaded) == 1
    comm.abort()


async def test_writes_are_offloaded_unless_forbidden(monkeypatch):
    offloaded = []

    async def offload(function, *args):
        offloaded.append(function)
        return function(*args)

    monkeypatch.setattr(module, "codec", Slow())
    monkeypatch.setattr(module, "offload", offload)
    comm = make_comm()
    await comm.write("x")
    assert len(offloaded) == 1
    comm.allow_offload = False
    await comm.write("x")
    assert len(offloaded) == 1
    assert len(comm._channel.sent) == 2
    comm.abort()


async def test_a_failing_serialization_is_logged_and_leaves_the_comm_open(caplog):
    comm, lock = make_comm(), threading.Lock()
    with pytest.raises(TypeError):
        await comm.write({"x": to_serialize(lock)}, serializers=["dask"], on_error="raise")
    assert not comm.closed()
    assert "Could not serialize" in caplog.text
    comm.abort()


async def test_a_write_with_much_queued_gives_the_loop_a_turn():
    comm = make_comm()
    turns = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await comm.write("x")
    assert not turns
    comm._channel.pending_bytes = comm._channel.queued_bytes = 100 << 20
    await comm.write("x")
    assert turns

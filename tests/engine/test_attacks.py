"""Peers that try to block the event loop or to use up memory, with hand-made records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading

import pytest

from dask_fabric.engine import socket_jobs
from dask_fabric.errors import ChannelClosedError, ProtocolError
from dask_fabric.memory import pool
from dask_fabric.paths.cma import copies, endpoint
from dask_fabric.paths.python_path import PythonPath

from .conftest import fd_of, new_channel, unix_pair
from .offering import (
    ACKNOWLEDGE,
    BULK,
    CLOSE,
    ENTRY,
    ERROR,
    FRAMES,
    INLINE,
    MESSAGE,
    PATHS,
    PREFIX,
    REQUEST,
    attacked,
    numbers,
    offer,
    receive,
    until,
)

# Each as it stands on the stream, with what it may follow: a message of ours that offers a frame,
# for the answers, and a request of the channel under attack, for the frames.
RECORDS = {
    "message": PREFIX.pack(MESSAGE, 0, 0, 1, 3, 0) + ENTRY.pack(2, 0, 0, 0, 0) + b"hdrfr",
    "offer": offer(0, 65_536, 1),
    "acknowledge": PREFIX.pack(ACKNOWLEDGE, 0, 0, 0, 0, 0),
    "request": PREFIX.pack(REQUEST, 0, 0, 0, 0, 0),
    "error": PREFIX.pack(ERROR, 0, 0, 0, 7, 0) + b"enough!",
    "close": PREFIX.pack(CLOSE, 0, 0, 0, 0, 0),
    "paths": PREFIX.pack(PATHS, 0, 0, 0, 1, 0) + b"\x80",
    "frames": offer(0, 65_536, 1)
    + PREFIX.pack(FRAMES, 0, 0, 1, 0, 0)
    + ENTRY.pack(65_536, 0, 0, 0, 0)
    + bytes(100),
    "unknown": PREFIX.pack(99, 0, 0, 0, 0, 0),
}


def send_all(peer, data):
    return asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(peer, data))


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize("name", RECORDS)
async def test_the_loop_goes_on_wherever_a_record_is_cut(name, awaited):
    """A loop that waits for the rest of a record would never end this test."""
    record = RECORDS[name]
    for cut in range(len(record) + 1):
        async with attacked() as (channel, peer):
            channel.send(b"", [numbers(INLINE)])
            reading = asyncio.ensure_future(receive(channel)) if awaited else None
            await turns(2)
            peer.sendall(record[:cut])
            await turns(5)
            with contextlib.suppress(BrokenPipeError):  # it may have ended the connection
                peer.sendall(record[cut:])
            await turns(5)
            peer.close()
            await turns(5)
            if reading is None:
                reading = asyncio.ensure_future(receive(channel))
            (outcome,) = await asyncio.gather(reading, return_exceptions=True)
            assert isinstance(outcome, (tuple, ChannelClosedError, ProtocolError)), cut


async def test_the_text_of_an_error_stands_on_one_line():
    async with attacked() as (channel, peer):
        text = b"no\nERROR forged \x1b[31m line\r\n"
        peer.sendall(PREFIX.pack(ERROR, 0, 0, 0, len(text), 0) + text)
        with pytest.raises(ProtocolError) as caught:
            await receive(channel)
        assert str(caught.value).isprintable() and "forged" in str(caught.value)


@pytest.mark.parametrize("kind", [ACKNOWLEDGE, REQUEST, FRAMES, 99])
async def test_nothing_behind_a_violation_is_delivered_when_the_peer_has_gone(kind):
    """What is left is read when a write fails; it held a message, the violation, and another."""
    async with attacked() as (channel, peer):
        wrong = PREFIX.pack(kind, 0, 0, 0, 0, 1 << 40)
        peer.sendall(PREFIX.pack(MESSAGE, 0, 0, 0, 6, 0) + b"before" + wrong)
        await turns()
        peer.sendall(PREFIX.pack(MESSAGE, 0, 0, 0, 0, 1) + PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))
        peer.close()
        with pytest.raises((ChannelClosedError, ProtocolError)):
            channel.send(b"to nobody", [])
        assert await receive(channel) == (b"before", [])
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await receive(channel)


# ---------------------------------------------------------------- large tables


@pytest.mark.parametrize("size", [0, 1])
async def test_a_message_of_very_many_frames_leaves_turns_to_others(size):
    count = 1 << 17
    async with attacked() as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        message = PREFIX.pack(MESSAGE, 0, 0, count, 0, 0) + ENTRY.pack(size, 0, 0, 0, 0) * count
        sending = send_all(peer, message + b"x" * (count * size))
        turn_count = 0
        while not reading.done():
            await asyncio.sleep(0)
            turn_count += 1
        _, frames = await reading
        await sending
        assert [len(frame) for frame in frames] == [size] * count
        assert turn_count > count // 4096


async def test_a_message_of_very_many_frames_is_read_after_the_end_of_its_peer():
    count = 5000
    async with attacked() as (channel, peer):
        data = PREFIX.pack(MESSAGE, 0, 0, count, 0, 0) + ENTRY.pack(0, 0, 0, 0, 0) * count
        await send_all(peer, data)
        peer.close()
        await until(lambda: channel.closed)
        _, frames = await receive(channel)
        assert len(frames) == count


async def test_many_messages_behind_one_of_very_many_frames_arrive():
    count = 100_000
    async with attacked() as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        data = PREFIX.pack(MESSAGE, 0, 0, count, 0, 0) + ENTRY.pack(0, 0, 0, 0, 0) * count
        for sequence in range(1, 2001):
            data += PREFIX.pack(MESSAGE, 0, 0, 0, 1000, sequence) + b"%1000d" % sequence
        sending = send_all(peer, data)
        await reading
        for sequence in range(1, 2001):
            header, _ = await receive(channel)
            assert int(bytes(header)) == sequence
        await sending


async def test_offers_cost_memory_when_they_are_fetched():
    """The bytes of the first frames decide how much memory the next ones get."""
    count = 20_000
    async with attacked() as (channel, peer):
        before_bytes = pool.statistics()["in_use_bytes"]
        data = PREFIX.pack(MESSAGE, 0, 0, count, 0, 0)
        data += ENTRY.pack(65_536, 1, 0, 0, 8) * count + struct.pack("<Q", 1) * count
        reading = asyncio.ensure_future(receive(channel))
        sending = send_all(peer, data)
        await until(lambda: channel.statistics()["fallbacks_received"])
        await sending
        assert pool.statistics()["in_use_bytes"] - before_bytes < 16 << 20
        await send_all(peer, PREFIX.pack(FRAMES, 0, 0, count, 0, 0))
        await send_all(peer, ENTRY.pack(65_536, 0, 0, 0, 0) * count)
        await turns(100)
        assert pool.statistics()["in_use_bytes"] - before_bytes < 32 << 20
        channel.abort()
        with pytest.raises(ChannelClosedError):
            await reading


@pytest.mark.parametrize("awaited", [True, False])
async def test_many_offered_frames_come_in_windows(cma_pair, awaited):
    async with cma_pair(threshold_bytes=65_536) as (near, far):
        data = numbers(65_536 + 3000)
        sent = [data[index : index + 65_536] for index in range(3000)]
        reading = asyncio.ensure_future(receive(far)) if awaited else None
        near.send(b"many", sent)
        near.send(b"next", [data])
        if reading is None:
            await turns()
            reading = asyncio.ensure_future(receive(far))
        header, frames = await reading
        assert bytes(header) == b"many" and len(frames) == 3000
        for frame, expected in zip(frames, sent, strict=True):
            assert frame == memoryview(expected)
        assert far.statistics()["fetched_frames"] == 3000
        _, (frame,) = await receive(far)
        assert frame == memoryview(data)
        await until(lambda: not near.in_flight_bytes)


# ---------------------------------------------------------------- pages that are slow to read


@pytest.mark.parametrize("nbytes", [INLINE, BULK])
async def test_a_page_that_comes_late_holds_up_nobody(slow_memory, nbytes):
    memory = slow_memory(nbytes)
    async with attacked() as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        peer.sendall(offer(0, nbytes, memory.address))
        await until(lambda: copies.statistics()["stuck_count"])
        assert not reading.done()
        memory.arrive()
        _, (frame,) = await reading
        assert bytes(frame) == bytes(nbytes)


@pytest.mark.parametrize("nbytes", [INLINE, BULK])
@pytest.mark.parametrize("how", ["abort", "the peer closes"])
async def test_an_end_does_not_wait_for_a_page(slow_memory, nbytes, how, quarantined):
    memory = slow_memory(nbytes)
    async with attacked() as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        peer.sendall(offer(0, nbytes, memory.address))
        await until(lambda: copies.statistics()["stuck_count"])
        if how == "abort":
            channel.abort()
        else:
            peer.close()
        with pytest.raises(ChannelClosedError):
            await reading
        # A thread may still write to the frame: nobody else gets its memory.
        assert copies.statistics()["stuck_count"] and quarantined() == 1
    memory.arrive()
    await until(lambda: quarantined() == 0)
    assert copies.statistics()["stuck_count"] == 0


async def test_a_page_that_never_comes_is_given_up(slow_memory, monkeypatch):
    monkeypatch.setattr(endpoint, "STALLED_SECONDS", 0.2)
    memory = slow_memory(BULK)
    async with attacked() as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        peer.sendall(offer(0, BULK, memory.address))
        await until(lambda: channel.statistics()["fallbacks_received"])
        frames = PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(BULK, 0, 0, 0, 0)
        sent = numbers(BULK)
        sending = send_all(peer, frames + sent.tobytes())
        _, (frame,) = (await asyncio.gather(reading, sending))[0]
        assert frame == memoryview(sent)
        memory.arrive()  # the thread writes to the memory that was given up, and to no other
        await until(lambda: copies.statistics()["stuck_count"] == 0)
        assert frame == memoryview(sent)


async def test_stuck_threads_are_replaced(slow_memory, cma_pair):
    """The frames of other peers arrive, however many peers have slow pages."""
    memory = slow_memory(BULK)
    async with attacked() as (one, first), attacked() as (two, second), attacked() as (_, third):
        stuck = []
        for channel, peer in ((one, first), (two, second)):
            stuck.append(asyncio.ensure_future(receive(channel)))
            peer.sendall(offer(0, BULK, memory.address))
        del third
        await until(lambda: copies.statistics()["stuck_count"] >= 2)
        async with cma_pair() as (near, far):
            data = numbers(BULK)
            near.send(b"", [data])
            _, (frame,) = await receive(far)
            assert frame == memoryview(data)
        memory.arrive()
        for reading in stuck:
            _, (frame,) = await reading
            assert bytes(frame) == bytes(BULK)


async def test_an_abort_does_not_wait_for_a_page_that_is_being_sent(
    slow_memory, channels, quarantined
):
    """The array lies on a file system that hangs: a thread of the sender is stuck in its page."""
    memory = slow_memory(BULK)
    async with channels() as (near, far):
        descriptor = fd_of(near)
        near.send(b"", [memory.view])
        await until(memory.is_awaited)
        near.abort()
        assert quarantined() == 1
        assert os.path.exists(f"/proc/self/fd/{descriptor}")  # no other file gets its number
        memory.arrive()
        # What the thread was about to write is more than the socket takes while nobody reads.
        await until(lambda: socket_jobs.statistics()["job_count"] == 0)
        with pytest.raises(ChannelClosedError):
            await receive(far)
    await until(lambda: quarantined() == 0)
    assert socket_jobs.statistics()["job_count"] == 0


def test_what_a_closed_loop_has_left_in_quarantine_is_freed_by_the_next(
    slow_memory, channels, quarantined
):
    memory = slow_memory(BULK)

    async def leave():
        async with channels() as (near, _):
            near.send(b"", [memory.view])
            await until(memory.is_awaited)

    async def come_later():
        async with channels():
            await until(lambda: quarantined() == 0)

    asyncio.run(leave())
    assert quarantined() == 1
    memory.arrive()
    asyncio.run(come_later())


async def test_a_stuck_thread_does_not_send_the_bytes_of_the_next_comm(
    slow_memory, channels, quarantined
):
    """After the page, the thread reads a buffer of small data, which comms pass to each other."""
    memory = slow_memory(INLINE)
    async with (
        channels(stream_bulk_bytes=65_536) as (near, far),
        channels() as (other, _),
        channels() as (third, _),
    ):
        near.send(b"", [memory.view, b"A" * 3000])
        await until(memory.is_awaited)
        other.send(b"", [])
        other.send(b"has the buffer that idle comms share, for the rest of this turn", [])
        near.abort()
        for _ in range(10):
            third.send(b"", [b"B" * 3000])
        memory.arrive()
        await until(lambda: socket_jobs.statistics()["job_count"] == 0)
        _, frames = await receive(far)
        assert bytes(frames[1]) == b"A" * 3000
        await until(lambda: quarantined() == 0)


# ---------------------------------------------------------------- messages that stand still

HALVES = {
    "a prefix": PREFIX.pack(MESSAGE, 0, 0, 0, 100, 0)[:10],
    "a header": PREFIX.pack(MESSAGE, 0, 0, 0, 100, 0) + bytes(50),
    "a frame": PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0)
    + ENTRY.pack(BULK, 0, 0, 0, 0)
    + bytes(BULK // 2),
    "what was requested": offer(0, 65_536, 1),
}


@pytest.mark.parametrize("name", HALVES)
async def test_a_message_that_stands_still_ends_the_comm(name):
    async with attacked(stalled_timeout_seconds=0.05) as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        await send_all(peer, HALVES[name][: 100 + BULK // 2])
        with pytest.raises(ChannelClosedError, match=r"in the middle of a message.*stalled"):
            await reading


async def test_a_comm_without_a_message_may_stand_still():
    """Also one whose whole messages nobody reads."""
    async with attacked(stalled_timeout_seconds=0.05) as (channel, peer):
        peer.sendall(PREFIX.pack(MESSAGE, 0, 0, 0, 3, 0) + b"all")
        await asyncio.sleep(0.2)
        header, _ = await receive(channel)
        assert header == b"all"
        reading = asyncio.ensure_future(receive(channel))
        await asyncio.sleep(0.2)
        peer.sendall(PREFIX.pack(MESSAGE, 0, 0, 0, 3, 1) + b"one")
        assert (await reading)[0] == b"one"


async def test_a_slow_message_goes_on():
    async with attacked(stalled_timeout_seconds=0.2) as (channel, peer):
        reading = asyncio.ensure_future(receive(channel))
        data = PREFIX.pack(MESSAGE, 0, 0, 0, 30, 0) + bytes(30)
        for index in range(len(data)):
            peer.sendall(data[index : index + 1])
            await asyncio.sleep(0.01)
        assert (await reading)[0] == bytes(30)


# ---------------------------------------------------------------- ends


async def test_a_path_that_is_stuck_ends_the_comm(quarantined):
    """A fetch neither ends nor releases its memory."""
    ended = threading.Event()

    class Stuck(PythonPath):
        def fetch_frame(self, descriptor, memory):
            ended.wait()

        def patience_seconds(self, nbytes):
            return 0.01

        def is_hopeless(self):
            return True

    path = Stuck(asyncio.get_running_loop(), "stuck", 1, 8)
    async with attacked(path) as (channel, peer):
        peer.sendall(offer(0, BULK, 4096))
        try:
            with pytest.raises(ChannelClosedError, match="by the path stuck does not end"):
                await receive(channel)
            assert quarantined() == 1
        finally:
            ended.set()
    await until(lambda: quarantined() == 0)


async def test_a_frame_that_ends_as_a_close_does_is_not_taken_for_one():
    async with attacked() as (channel, peer):
        close = PREFIX.pack(CLOSE, 0, 0, 0, 0, 0)
        table = PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(100 + len(close), 0, 0, 0, 0)
        peer.sendall(table + bytes(100) + close)
        await until(lambda: channel.statistics()["bytes_received"])
        peer.close()
        await until(lambda: channel.closed)
        assert "its process died" in str(channel.error) or "middle" in str(channel.error)
        _, (frame,) = await receive(channel)
        assert bytes(frame) == bytes(100) + close


async def test_a_close_behind_messages_is_known(cma_pair):
    async with attacked() as (channel, peer):
        peer.sendall(
            PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(100, 0, 0, 0, 0) + bytes(100)
            + PREFIX.pack(CLOSE, 0, 0, 0, 0, 0)
        )  # fmt: skip
        peer.close()
        await until(lambda: channel.closed)
        assert "the peer closed the connection" in str(channel.error)


def test_an_interrupt_in_one_task_leaves_others_their_messages():
    """The end of a job wakes a task at once. Its exception must not cost others their wake-up."""
    loop = asyncio.new_event_loop()

    async def opened():
        pairs = []
        for _ in range(2):
            near, far = unix_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            pairs.append((near, far))
        return pairs

    async def interrupted(channel):
        await receive_large(channel)
        raise KeyboardInterrupt

    async def receive_large(channel):
        return await channel.receive()

    pairs = loop.run_until_complete(opened())
    try:
        data = numbers(BULK)
        first = loop.create_task(interrupted(pairs[0][1]))
        second = loop.create_task(receive_large(pairs[1][1]))
        for near, _ in pairs:
            loop.call_soon(near.send, b"", [data])
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert isinstance(first.exception(), KeyboardInterrupt)
        _, (frame,) = loop.run_until_complete(asyncio.wait_for(second, 30))
        assert frame == memoryview(data)
    finally:
        for pair in pairs:
            for channel in pair:
                loop.call_soon(channel.abort)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def test_a_failing_observer_of_the_end_leaves_no_reader_behind():
    class Broken:
        def closed(self, channel):
            raise RuntimeError("statistics are broken")

    async with attacked() as (channel, _):
        channel.observer = Broken()
        reading = asyncio.ensure_future(receive(channel))
        await turns(2)
        with pytest.raises(RuntimeError):
            channel.abort()
        with pytest.raises(ChannelClosedError):
            await reading


async def test_a_channel_that_has_ended_tells_nobody_of_its_activity():
    """Another thread may ask to be told in the very moment in which the channel ends."""
    async with attacked() as (channel, peer):
        peer.sendall(PREFIX.pack(MESSAGE, 0, 0, 0, 6, 0) + b"before")
        peer.close()
        await until(lambda: channel.closed or channel.ended())
        channel.abort(ConnectionResetError("from the test"))
        channel.tells_activity = True
        assert await receive(channel) == (b"before", [])
        assert not channel.tells_activity


async def test_the_error_of_a_channel_keeps_its_traceback():
    async with attacked() as (channel, peer):
        peer.sendall(PREFIX.pack(99, 0, 0, 0, 0, 0))
        with pytest.raises(ProtocolError) as caught:
            await receive(channel)
        assert caught.value.__traceback__ is not None
        assert channel.error is not caught.value and channel.error.__traceback__ is None

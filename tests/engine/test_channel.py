import asyncio
import gc
import os
import socket
import weakref

import numpy as np
import pytest

from dask_fabric.engine import socket_jobs
from dask_fabric.errors import ChannelClosedError, LimitError, ProtocolError
from dask_fabric.memory import pool
from dask_fabric.wire.hello import Hello

from .conftest import fd_of, new_channel, tcp_pair

SIZES = [0, 1, 100, 65_535, 65_536, 70_000, 1 << 20, (1 << 20) + 1, 5_000_000, 40_000_000]


def random_bytes(size):
    return np.random.default_rng(size).integers(0, 256, size, "u1")


async def receive(channel):
    return channel.receive_nowait() or await channel.receive()


@pytest.mark.parametrize("size", SIZES)
async def test_frames_arrive_as_they_were(channels, size):
    async with channels() as (near, far):
        sent = [random_bytes(size), random_bytes(10)]
        near.send(b"header", sent)
        header, frames = await receive(far)
        assert bytes(header) == b"header"
        assert all(
            np.array_equal(a, np.frombuffer(b, "u1")) for a, b in zip(sent, frames, strict=True)
        )


async def test_order_is_kept_over_all_sizes(channels):
    async with channels() as (near, far):
        for number, size in enumerate(3 * SIZES[:-1] + [3, 2_000_000, 5]):
            near.send(str(number).encode(), [np.full(size, number % 256, "u1")])
        for number, size in enumerate(3 * SIZES[:-1] + [3, 2_000_000, 5]):
            header, (frame,) = await receive(far)
            assert bytes(header) == str(number).encode()
            assert frame.nbytes == size and set(np.unique(frame)) <= {number % 256}


async def test_both_sides_may_write_before_they_read(channels):
    async with channels() as pair:
        data = random_bytes(30_000_000)
        for channel in pair:
            assert channel.send(b"", [data]) > data.nbytes
        for channel in pair:
            _, (frame,) = await receive(channel)
            assert np.array_equal(data, np.frombuffer(frame, "u1"))


async def test_large_frames_are_jobs_of_the_engine_and_small_ones_are_not(channels):
    async with channels() as (near, far):
        near.send(b"", [b"x" * 50_000])
        await receive(far)
        assert near.statistics()["send_jobs"] == far.statistics()["receive_jobs"] == 0
        near.send(b"", [np.zeros(50_000_000, "u1")])
        await receive(far)
        assert near.statistics()["send_jobs"] >= 1 and far.statistics()["receive_jobs"] == 1
        while socket_jobs.statistics()["job_count"]:  # the sender's own end of it
            await asyncio.sleep(0)


async def test_one_wake_up_for_a_whole_large_message(channels):
    async with channels() as (near, far):
        near.send(b"", [np.zeros(50_000_000, "u1") for _ in range(4)])
        await receive(far)
        assert far.statistics()["receive_jobs"] == 1


async def test_small_messages_are_batched_and_none_is_late(channels):
    async with channels() as (near, far):
        for number in range(5_000):
            near.send(b"%d" % number, [])
        for number in range(5_000):
            assert (await receive(far))[0] == b"%d" % number


async def test_buffers_of_any_kind_are_frames(channels):
    async with channels() as (near, far):
        fortran = np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3))
        near.send(memoryview(b"h"), [b"a", bytearray(b"b"), memoryview(b"c"), fortran])
        header, frames = await receive(far)
        assert bytes(header) == b"h"
        assert [bytes(frame) for frame in frames[:3]] == [b"a", b"b", b"c"]
        assert np.array_equal(np.frombuffer(frames[3], "f8"), fortran.ravel("F"))


async def test_small_frames_of_a_large_message_are_not_copied_either(channels):
    async with channels() as (near, far):
        frames = [np.full(60_000, number, "u1") for number in range(200)]
        gone = weakref.ref(frames[-1])
        near.send(b"h", frames)
        del frames
        assert gone() is not None
        _, received = await receive(far)
        assert [frame[0] for frame in received] == list(range(200))


async def test_a_frame_that_is_not_contiguous_is_refused_and_leaves_the_channel_usable(channels):
    async with channels() as (near, far):
        with pytest.raises(BufferError, match="contiguous"):
            near.send(b"h", [np.zeros(10)[::2]])
        near.send(b"next", [])
        assert (await receive(far))[0] == b"next"


async def test_memory_is_let_go_when_it_is_sent(channels):
    async with channels() as (near, far):
        data = np.zeros(30_000_000, "u1")
        gone = weakref.ref(data)
        near.send(b"", [data])
        del data
        assert gone() is not None and near.pending_bytes > 0
        await receive(far)
        near.send(b"", [])  # the sender's loop learns of the end in between
        await receive(far)
        gc.collect()
        assert gone() is None and near.pending_bytes == 0


async def test_orderly_close_delivers_everything_first(channels):
    async with channels() as (near, far):
        near.send(b"big", [np.zeros(20_000_000, "u1")])
        near.send(b"last", [])
        closing = asyncio.ensure_future(near.close(30))
        assert bytes((await receive(far))[0]) == b"big"
        assert bytes((await receive(far))[0]) == b"last"
        await closing
        with pytest.raises(ChannelClosedError, match="the peer closed"):
            await receive(far)
        assert near.closed and far.closed


async def test_close_is_bounded_when_the_peer_does_not_read(channels):
    async with channels() as (near, _far):
        near.send(b"", [np.zeros(50_000_000, "u1")])
        await near.close(0.05)
        assert near.closed and near.statistics()["pending_bytes"] == 0


async def test_the_end_of_the_peer_is_noticed_without_a_read(channels):
    async with channels() as (near, far):
        far.abort()
        while not near.closed:
            await asyncio.sleep(0)
        with pytest.raises(ChannelClosedError, match="lost"):
            near.send(b"", [])


async def test_messages_before_the_end_stay_readable(channels):
    async with channels() as (near, far):
        near.send(b"one", [])
        near.send(b"two", [])
        await near.close(5)
        while not far.closed:
            await asyncio.sleep(0)
        assert far.receive_nowait()[0] == b"one"
        assert far.receive_nowait()[0] == b"two"
        with pytest.raises(ChannelClosedError, match="the peer closed"):
            await far.receive()


async def test_a_message_is_its_reader_s_alone(channels):
    async with channels() as (near, far):

        async def drop():
            _, frames = await far.receive()
            before = pool.statistics()["in_use_bytes"]
            del frames  # the task has not waited since
            return before - pool.statistics()["in_use_bytes"]

        task = asyncio.get_running_loop().create_task(drop())
        await asyncio.sleep(0)
        near.send(b"", [np.zeros(10_000_000, "u1")])
        assert await task >= 10_000_000


@pytest.mark.parametrize("size", [100, 500_000, 50_000_000])
async def test_abort_during_a_receive(channels, size):
    async with channels() as (near, far):
        sock = near.send(b"", [np.zeros(size, "u1")])
        pending = far.receive()
        far.abort()
        with pytest.raises(ChannelClosedError):
            await pending
        assert sock > size and socket_jobs.statistics()["job_count"] <= 1


async def test_a_cancelled_receive_can_be_aborted(channels):
    async with channels() as (near, far):
        near.send(b"", [np.zeros(50_000_000, "u1")])
        task = asyncio.ensure_future(receive(far))
        while not far.statistics()["receive_jobs"]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        far.abort()
        near.abort()
        # A thread that is sending is waited for 5 ms, which may not be enough on a busy machine.
        while socket_jobs.statistics()["job_count"]:
            await asyncio.sleep(0.001)


async def test_a_truncated_message_is_an_error():
    near, far = tcp_pair()
    channel = new_channel(near, False)
    far.setblocking(True)
    task = asyncio.ensure_future(channel.open())
    await asyncio.sleep(0)
    far.sendall(Hello(scheme="x").encode() + b"\x01" + bytes(9))
    await task
    far.recv(65536)
    far.close()
    with pytest.raises(ChannelClosedError, match="in the middle of a message"):
        await channel.receive()


async def test_a_violation_is_answered_with_an_error_record(channels):
    async with channels() as (near, far):
        os.write(fd_of(near), b"\xff" * 24)
        with pytest.raises(ProtocolError, match="reserved"):
            await receive(far)
        with pytest.raises(ProtocolError, match=r"the peer ended the connection.*reserved"):
            await receive(near)


async def test_a_limit_is_kept(channels):
    async with channels(message_bytes_limit=1_000_000) as (near, far):
        near.send(b"", [np.zeros(2_000_000, "u1")])
        with pytest.raises(LimitError, match=r"fabric\.limits\.message"):
            await receive(far)
        assert far.closed


async def test_only_one_receive_at_a_time(channels):
    async with channels() as (near, _):
        pending = near.receive()
        with pytest.raises(RuntimeError, match="pending"):
            near.receive()
        near.abort()
        with pytest.raises(ChannelClosedError):
            await pending


async def test_a_reader_that_does_not_come_stops_the_peer_by_flow_control(channels):
    async with channels() as (near, far):
        payload = b"x" * 50_000
        for _ in range(400):
            near.send(b"", [payload])
        while near.pending_bytes and far.statistics()["bytes_received"] < 128 << 10:
            await asyncio.sleep(0)
        assert far.statistics()["bytes_received"] <= 512 << 10
        for _ in range(400):
            _, (frame,) = await receive(far)
            assert frame == payload


async def test_a_slow_reader_gets_all_that_was_sent_before_the_close(channels):
    async with channels() as (near, far):
        for _ in range(6):
            near.send(b"", [np.zeros(20_000_000, "u1")])
        closing = asyncio.ensure_future(near.close(0.2))
        for _ in range(6):
            _, (frame,) = await receive(far)
            assert frame.nbytes == 20_000_000
            await asyncio.sleep(0.05)  # together longer than the timeout, which is for no progress
        await closing
        with pytest.raises(ChannelClosedError, match="the peer closed"):
            await receive(far)


async def test_what_is_lost_by_a_close_is_told(channels, caplog):
    async with channels() as (near, _far):
        near.send(b"", [np.zeros(50_000_000, "u1")])
        await near.close(0.05)
    assert "bytes unsent" in caplog.text and "fabric.timeouts.close" in caplog.text


async def test_nothing_is_sent_after_the_close_record(channels):
    async with channels() as (near, far):
        near.send(b"", [np.zeros(50_000_000, "u1")])
        closing = [asyncio.ensure_future(near.close(10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ChannelClosedError, match="being closed on this side"):
            near.send(b"late", [])
        await receive(far)
        await asyncio.gather(*closing)
        assert near.closed
        with pytest.raises(ChannelClosedError, match="the peer closed"):
            await receive(far)


async def test_nothing_is_read_after_this_side_closed(channels):
    async with channels() as (near, far):
        near.send(b"x", [])
        while not far.statistics()["bytes_received"]:
            await asyncio.sleep(0)
        far.abort()
        with pytest.raises(ChannelClosedError, match="this side"):
            far.receive_nowait()


async def test_open_fails_at_once_where_the_peer_is_gone():
    near, far = tcp_pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    channel = new_channel(near, False)
    far.close()  # a reset
    with pytest.raises((ChannelClosedError, ProtocolError, OSError)):
        await asyncio.wait_for(channel.open(), 10)
    assert channel.closed

"""Offers and the life of a process: two loops, forks, ends while frames are fetched."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest


def run(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=os.path.dirname(__file__),
    )


BEGIN = """
    import asyncio, gc, os, signal, socket, threading
    import numpy as np
    from conftest import cma_path, new_channel
    from dask_fabric.paths.cma import copies
    from dask_fabric.errors import ChannelClosedError, ForkedError
    def pair():
        socks = socket.socketpair()
        for sock in socks:
            sock.setblocking(False)
        return socks
    async def opened():
        near, far = pair()
        near, far = new_channel(near, False), new_channel(far, True)
        await asyncio.gather(near.open(), far.open())
        near.use(cma_path()), far.use(cma_path())
        return near, far
"""


@pytest.mark.parametrize("run_loop", ["asyncio.run", "uvloop.run"])
def test_two_loops_of_one_process(run_loop):
    if run_loop.startswith("uvloop"):
        pytest.importorskip("uvloop")
        run_loop = f"import uvloop; {run_loop}"
    start = run_loop.rpartition(" ")[2]
    done = run(
        BEGIN
        + f"""
    import importlib
    {run_loop.rpartition(" ")[0].rstrip(";") or "pass"}
    near, far = pair()
    async def side(sock, server_side):
        channel = new_channel(sock, server_side)
        await channel.open()
        channel.use(cma_path())
        for size in (10, 300_000, 50_000_000):
            channel.send(b"h", [np.full(size, 7, "u1")])
        for size in (10, 300_000, 50_000_000):
            _, (frame,) = channel.receive_nowait() or await channel.receive()
            assert frame.nbytes == size and (np.frombuffer(frame, "u1") == 7).all()
        assert channel.statistics()["fetched_frames"] == 2
        while channel.in_flight_bytes:
            await asyncio.sleep(0)
        await channel.close(10)
    other = threading.Thread(target=lambda: {start}(side(far, True)))
    other.start()
    {start}(side(near, False))
    other.join()
    print("fine")
    """
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_fork_while_frames_are_fetched_harms_nobody():
    done = run(
        BEGIN
        + """
    async def main():
        near, far = await opened()
        near.send(b"h", [np.full(100_000_000, 7, "u1")])
        far._on_readable()
        pending = far.receive()
        assert copies.statistics()["job_count"]
        pid = os.fork()
        if pid == 0:
            assert copies.statistics()["job_count"] == 0
            try:
                far.receive()
            except ForkedError:
                del near, far, pending
                gc.collect()
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        _, (frame,) = await pending
        assert (np.frombuffer(frame, "u1") == 7).all()
        near.abort()
    asyncio.run(main())
    pid = os.fork()
    if pid == 0:        # with engine and threads of its own
        asyncio.run(main())
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    print("fine")
    """
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize("end", ["loop.stop(); loop.close()", "import sys; sys.exit()", "pass"])
def test_an_end_while_frames_are_fetched_is_ordinary(end):
    done = run(
        BEGIN
        + f"""
    loop = asyncio.new_event_loop()
    async def main():
        near, far = await opened()
        near.send(b"h", [np.full(100_000_000, 7, "u1")])
        far._on_readable()
        pending = far.receive()
        assert copies.statistics()["job_count"]
        return near, far, pending
    kept = loop.run_until_complete(main())
    {end}
    del kept
    gc.collect()
    if loop.is_closed():
        assert copies.statistics()["job_count"] == 0
    """
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr

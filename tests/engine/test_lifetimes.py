"""Channels and processes: several loops, forks, and exits with transfers in flight."""

import asyncio
import os
import subprocess
import sys
import textwrap

import pytest
from tests.engine.conftest import new_channel, tcp_pair

from dask_fabric.jobs import completions


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=os.path.dirname(__file__),
        env={**os.environ, **env},
    )


def test_several_loops_in_one_process():
    done = run(
        """
        import asyncio, threading
        import numpy as np
        from conftest import new_channel, tcp_pair
        near, far = tcp_pair()
        async def side(sock, server_side):
            channel = new_channel(sock, server_side)
            await channel.open()
            for size in (10, 5_000_000, 10, 40_000_000):
                channel.send(b"h", [np.zeros(size, "u1")])
            for size in (10, 5_000_000, 10, 40_000_000):
                message = channel.receive_nowait() or await channel.receive()
                assert message[1][0].nbytes == size
            await channel.close(10)
        other = threading.Thread(target=lambda: asyncio.run(side(far, True)))
        other.start()
        asyncio.run(side(near, False))
        other.join()
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_uvloop():
    pytest.importorskip("uvloop")
    done = run(
        """
        import asyncio, uvloop
        import numpy as np
        from conftest import new_channel, tcp_pair
        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            for size in (10, 500_000, 50_000_000):
                near.send(b"h", [np.full(size, 7, "u1")])
                header, (frame,) = far.receive_nowait() or await far.receive()
                assert (np.frombuffer(frame, "u1") == 7).all()
            await near.close(5)
            while not far.closed:
                await asyncio.sleep(0)
        uvloop.run(main())
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_forked_child_gets_a_clear_error_and_the_parent_goes_on():
    done = run(
        """
        import asyncio, os
        import numpy as np
        from conftest import new_channel, tcp_pair
        from dask_fabric.errors import ForkedError
        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            near.send(b"h", [np.full(50_000_000, 7, "u1")])
            pending = far.receive()
            pid = os.fork()
            if pid == 0:
                try:
                    far.send(b"", [])
                except ForkedError as error:
                    os._exit(7 if "forked" in str(error) else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            header, (frame,) = await pending
            assert (np.frombuffer(frame, "u1") == 7).all()
            near.abort()
            while not far.closed:      # the child holds no copy of the socket
                await asyncio.sleep(0)
        asyncio.run(main())
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_forked_child_can_open_channels_of_its_own():
    done = run(
        """
        import asyncio, os
        import numpy as np
        from conftest import new_channel, tcp_pair
        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            near.send(b"h", [np.full(50_000_000, 7, "u1")])
            await far.receive()
            near.abort(), far.abort()
        asyncio.run(main())
        pid = os.fork()
        if pid == 0:
            asyncio.run(main())
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_forked_child_does_not_wait_for_what_a_thread_of_its_parent_does(slow_memory):
    memory = slow_memory(50_000_000)

    async def opened():
        near, far = (new_channel(*side) for side in zip(tcp_pair(), (False, True), strict=True))
        await asyncio.gather(near.open(), far.open())
        return near, far

    async def abort_while_a_thread_is_stuck():
        near, far = await opened()
        near.send(b"slow", [memory.view])
        while not memory.is_awaited():
            await asyncio.sleep(0.001)
        near.abort()
        far.abort()

    async def in_child():
        near, far = await opened()
        await asyncio.sleep(3 * completions.REAP_SECONDS)
        near.abort()
        far.abort()

    asyncio.run(abort_while_a_thread_is_stuck())
    assert completions.statistics()["quarantined_count"]
    pid = os.fork()
    if pid == 0:
        try:
            os.close(memory.fd)
            asyncio.run(in_child())
            os._exit(7 if completions.statistics()["quarantined_count"] == 0 else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize("end", ["loop.stop(); loop.close()", "import sys; sys.exit()", "pass"])
def test_ending_with_jobs_in_flight_is_ordinary(end):
    done = run(
        f"""
        import asyncio, gc
        import numpy as np
        from conftest import new_channel, tcp_pair
        loop = asyncio.new_event_loop()
        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            near.send(b"h", [np.full(50_000_000, 7, "u1")])
            pending = far.receive()
            return near, far, pending
        kept = loop.run_until_complete(main())
        {end}
        del kept
        gc.collect()
        print("fine")
        """
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_native_threads_leave_signals_to_python_and_idle_without_cpu():
    done = run(
        """
        import asyncio, os, signal
        import numpy as np
        from conftest import new_channel, tcp_pair
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            near.send(b"h", [np.full(50_000_000, 7, "u1")])
            await far.receive()
            near.abort(), far.abort()
        asyncio.run(main())
        names = []
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/comm") as file:
                name = file.read().strip()
            if name.startswith("fabric-"):
                names.append(name)
                with open(f"/proc/self/task/{task}/status") as file:
                    blocked = [line for line in file if line.startswith("SigBlk")][0]
                assert int(blocked.split()[1], 16) & (1 << (signal.SIGUSR1 - 1))
        assert set(names) == {"fabric-receive", "fabric-send"}, names
        os.kill(os.getpid(), signal.SIGUSR1)
        assert got == [1]
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_loop_that_closes_with_a_job_in_flight_leaves_nothing():
    done = run(
        """
        import asyncio, gc, os, time
        import numpy as np
        from conftest import new_channel, tcp_pair
        from dask_fabric.engine import socket_jobs
        from dask_fabric.memory import pool

        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            near.send(b"h", [np.full(50_000_000, 7, "u1")])
            far.receive()
            assert socket_jobs.statistics()["job_count"]

        def once():
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
            del loop
            gc.collect()
            # On a busy machine a thread may take longer to leave a job than is waited for it.
            until = time.monotonic() + 20
            while socket_jobs.statistics()["job_count"] and time.monotonic() < until:
                time.sleep(0.001)
            return socket_jobs.statistics()["job_count"], len(os.listdir("/proc/self/fd"))

        once()      # makes what the engine keeps
        held = pool.statistics()["in_use_bytes"]
        first, second = once(), once()
        assert first == second and first[0] == 0, (first, second)
        assert pool.statistics()["in_use_bytes"] <= held
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.slow
def test_the_pool_is_trimmed_where_no_job_ever_ran():
    done = run(
        """
        import asyncio, os
        from conftest import new_channel, tcp_pair
        from dask_fabric.engine import socket_jobs
        from dask_fabric.memory import pool

        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            pool.configure(idle_seconds=0.5)
            for _ in range(3):
                near.send(b"h", [bytes(500_000)])
                far.receive_nowait() or await far.receive()
            assert near.statistics()["send_jobs"] == far.statistics()["receive_jobs"] == 0
            while not pool.statistics()["idle_bytes"]:
                await asyncio.sleep(0)
            while pool.statistics()["idle_bytes"]:
                await asyncio.sleep(0.01)
        asyncio.run(main())
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_an_open_comm_alone_lets_the_threads_sleep_long():
    done = run(
        """
        import asyncio, os, sys
        from conftest import new_channel, tcp_pair
        from dask_fabric.memory import pool

        def timeout_ms():
            # The arguments of the call that the thread is in, epoll_wait's: its fourth is the time.
            for task in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{task}/comm") as file:
                    if file.read().strip() != "fabric-receive":
                        continue
                try:
                    with open(f"/proc/self/task/{task}/syscall") as file:
                        call = file.read().split()
                except OSError:
                    print("unreadable")
                    sys.exit()
                if len(call) > 4:
                    return int(call[4], 16)

        async def main():
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            kept = pool.allocate(100_000)
            assert pool.statistics()["in_use_count"] and not pool.has_idle_memory()
            found = None
            while found is None:
                await asyncio.sleep(0)
                found = timeout_ms()
            print(found)
            near.abort(), far.abort()
        asyncio.run(main())
        """
    )
    if done.stdout == "unreadable\n":
        pytest.skip("the kernel does not say what system call a thread is in")
    assert done.stdout == "10000\n", done.stderr


def test_a_native_thread_that_dies_is_not_counted():
    done = run(
        """
        import asyncio, os, select
        from conftest import new_channel, tcp_pair
        from dask_fabric.engine import socket_jobs

        def epolls():
            links = {int(fd): f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
            return {
                fd for fd, link in links.items()
                if os.path.exists(link) and "eventpoll" in os.readlink(link)
            }

        async def main():
            known = epolls()
            near, far = tcp_pair()
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            assert socket_jobs.statistics()["receive_thread_count"] == 1
            (fd,) = epolls() - known
            alive = select.epoll.fromfd(os.dup(fd))
            os.dup2(os.open(os.devnull, os.O_RDONLY), fd)   # no set to wait for any more
            reads, writes = os.pipe()
            os.write(writes, b"x")
            alive.register(reads, select.EPOLLIN | select.EPOLLONESHOT)     # the last wake-up
            while socket_jobs.statistics()["receive_thread_count"]:
                await asyncio.sleep(0)
            near.abort(), far.abort()
        asyncio.run(main())
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_socket_that_is_garbage_with_its_loop_is_closed_after_its_job():
    """The finalizers of one cycle run in any order, and another file may get the number of a closed
    socket while a native thread still writes to that number."""
    done = run(
        """
        import asyncio, gc, socket, warnings
        import numpy as np
        from conftest import new_channel, tcp_pair
        from dask_fabric.engine import socket_jobs
        warnings.simplefilter("ignore", ResourceWarning)
        seen = []
        class Watched(socket.socket):
            def __del__(self):
                seen.append(socket_jobs.statistics()["job_count"])
        async def begin(near, far):
            near, far = new_channel(near, False), new_channel(far, True)
            await asyncio.gather(near.open(), far.open())
            near.send(b"h", [np.zeros(50_000_000, "u1")])
            assert socket_jobs.statistics()["job_count"] == 1
        def leave_all():
            near, far = tcp_pair()
            near = Watched(fileno=near.detach())
            near.setblocking(False)
            gc.collect()                # finalizers of older objects are called first
            loop = asyncio.new_event_loop()
            loop.run_until_complete(begin(near, far))
        leave_all()
        gc.collect()
        print(seen, socket_jobs.statistics()["job_count"])
        """
    )
    assert done.stdout == "[0] 0\n", done.stderr

"""Preparations of a worker's process before the worker exists."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from dask_fabric.gpu.worker import stay_on

from .conftest import CPUS


@pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU to choose")
def test_all_threads_stay_on_the_cpus():
    code = f"""if 1:
        import os, threading
        from dask_fabric.gpu.worker import stay_on
        go = threading.Event()
        threads = [threading.Thread(target=go.wait) for _ in range(2)]
        threads[0].start()  # before, as those of a numerical library
        stay_on({CPUS[-1:]})
        threads[1].start()  # after, as those of a worker
        found = [os.sched_getaffinity(int(one)) for one in os.listdir("/proc/self/task")]
        go.set()
        print(found == [{set(CPUS[-1:])}] * len(found), len(found) >= 3)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_no_cpus_change_nothing():
    before = os.sched_getaffinity(0)
    stay_on(())
    assert os.sched_getaffinity(0) == before
    assert threading.active_count() >= 1


def test_a_thread_that_has_ended_keeps_no_other_from_its_cpus(monkeypatch, caplog):
    bound = []

    def bind(thread, cores):
        if thread == 1:
            raise ProcessLookupError
        bound.append((thread, cores))

    monkeypatch.setattr(os, "listdir", lambda _: ["1", "2", "3"])
    monkeypatch.setattr(os, "sched_setaffinity", bind)
    stay_on((5,))
    assert bound == [(2, (5,)), (3, (5,))] and not caplog.records


def test_cpus_that_cannot_be_had_are_told(caplog):
    before = os.sched_getaffinity(0)
    stay_on((4000,))
    assert "not bound to the CPUs near its GPU" in caplog.text
    assert os.sched_getaffinity(0) == before

"""Other activity of the machine during a measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dask_fabric.bench import machine
from dask_fabric.bench.awake import awake_cpus
from dask_fabric.bench.machine import NoiseWatch, _Ticks


@pytest.mark.parametrize(
    ("busy", "stolen", "own_ticks", "expected"),
    [
        (500, 0, 500, []),  # all of it is ours
        (500, 0, 490, []),
        (500, 0, 300, ["other processes used 20% of the CPUs during the measurement"]),
        (500, 50, 500, ["the hypervisor used 5% of the CPUs during the measurement"]),
    ],
)
def test_what_others_took(monkeypatch, busy, stolen, own_ticks, expected):
    ticks = iter([_Ticks(0, 0, 0), _Ticks(1000, busy, stolen)])
    seconds = iter([0.0, own_ticks / os.sysconf("SC_CLK_TCK")])
    monkeypatch.setattr(machine, "_ticks", lambda: next(ticks))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(seconds))
    assert NoiseWatch().warnings() == expected


def test_children_that_have_ended_are_our_own():
    before = machine._own_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert machine._own_seconds() > before
    assert machine._ticks().total > 0


def test_facts():
    facts = machine.facts()
    assert facts["cpu_count"] > 0 and facts["dask-fabric"]


def test_loops_of_idle_priority_run_for_the_time_of_the_block(monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with awake_cpus(False):
        assert started == []
    with awake_cpus():
        assert len(started) == len(os.sched_getaffinity(0))
        while any(os.sched_getscheduler(child.pid) != os.SCHED_IDLE for child in started):
            assert all(child.poll() is None for child in started)
        for child in started:  # Ctrl-C does that to all processes of a terminal
            child.send_signal(signal.SIGINT)
        assert all(child.poll() is None for child in started)
    assert [child.returncode for child in started] == [-signal.SIGKILL] * len(started)

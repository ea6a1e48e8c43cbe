"""The receive-buffer pool: which memory is kept, and which returns to the system."""

from __future__ import annotations

import ctypes
import random
import threading

import numpy as np
import pytest

from dask_fabric.memory import pool

from .conftest import DEFAULTS, KIB, MIB, address, resident_bytes, run_script


def native(name):
    """A C function of the pool that runs without the GIL, as the engine's threads call it."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = pool.__pyx_capi__[name]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(pointer(capsule, name_of(capsule)))


# ---------------------------------------------------------------- the bound


def test_oldest_idle_memory_goes_first_whatever_its_size():
    pool.configure(max_idle_bytes=3 * MIB)
    buffers = {name: pool.allocate(size) for name, size in
               [("a", MIB), ("b", MIB + 256 * KIB), ("c", MIB)]}  # fmt: skip
    addresses = {name: address(buffer) for name, buffer in buffers.items()}
    before = pool.statistics()
    for name in "abc":
        del buffers[name]
    after = pool.statistics()
    assert after["evicted_bytes"] - before["evicted_bytes"] == MIB
    assert after["idle_bytes"] == 2 * MIB + 256 * KIB
    kept = [pool.allocate(MIB + 256 * KIB), pool.allocate(MIB)]
    assert [address(buffer) for buffer in kept] == [addresses["b"], addresses["c"]]


def test_a_pool_full_of_useless_sizes_comes_to_serve_the_sizes_in_use():
    pool.configure(max_idle_bytes=64 * MIB)
    small = [pool.allocate(64 * KIB) for _ in range(1024)]
    del small
    assert pool.statistics()["idle_bytes"] == 64 * MIB
    misses_count = pool.statistics()["misses_count"]
    for _ in range(100):
        pool.allocate(64 * MIB)
        assert pool.statistics()["idle_bytes"] <= 64 * MIB
    assert pool.statistics()["misses_count"] - misses_count < 20


def test_frames_beyond_the_bound_are_neither_kept_nor_evict_others():
    pool.configure(max_idle_bytes=4 * MIB)
    pool.allocate(MIB)
    pool.allocate(100 * MIB)
    pool.allocate(4 * MIB + 1)
    assert pool.statistics()["idle_bytes"] == MIB


def test_memory_mapped_beyond_the_bound_is_not_kept_under_a_larger_one():
    pool.configure(max_idle_bytes=0)
    live = [pool.allocate(nbytes) for nbytes in (70_000, 5 * MIB)]
    pool.configure(max_idle_bytes=1 << 30)
    live.clear()
    assert not pool.has_idle_memory()


def test_without_a_bound_to_fill_nothing_is_kept():
    pool.configure(max_idle_bytes=0)
    for nbytes in (64 * KIB, 2 * MIB - 1, 2 * MIB, 5 * MIB):
        memoryview(pool.allocate(nbytes))[nbytes - 1] = 1
    assert not pool.has_idle_memory()


def test_a_smaller_bound_holds_at_once_for_idle_and_for_live_memory():
    live = pool.allocate(8 * MIB)
    pool.allocate(4 * MIB)
    pool.configure(max_idle_bytes=2 * MIB)
    assert pool.statistics()["idle_bytes"] == 0
    del live
    assert pool.statistics()["idle_bytes"] == 0


def test_peak_is_remembered():
    pool.allocate(64 * MIB)
    pool.trim()
    assert 64 * MIB <= pool.statistics()["peak_idle_bytes"] <= DEFAULTS["max_idle_bytes"]


# ---------------------------------------------------------------- trimming


@pytest.mark.parametrize("nbytes", [64 * KIB, MIB, 64 * MIB])
def test_trimmed_memory_goes_back_to_the_system(nbytes):
    arrays = [np.frombuffer(pool.allocate(nbytes), "u1") for _ in range(64 * MIB // nbytes)]
    for array in arrays:
        array[:] = 1
    del array, arrays
    before = resident_bytes()
    assert pool.trim() == 64 * MIB
    assert before - resident_bytes() > 50 * MIB
    assert not pool.has_idle_memory()


def test_trim_keeps_the_newest_within_its_target():
    buffers = [pool.allocate(4 * MIB) for _ in range(3)]
    newest = address(buffers[2])
    while buffers:
        del buffers[0]
    assert pool.trim(7 * MIB) == 8 * MIB
    assert address(pool.allocate(4 * MIB)) == newest
    with pytest.raises(ValueError, match="target_bytes"):
        pool.trim(-1)


def test_memory_is_trimmed_only_when_idle_for_long_enough():
    pool.allocate(4 * MIB)
    pool.trim_idle()
    assert pool.has_idle_memory()
    trimmed_bytes = pool.statistics()["trimmed_bytes"]
    pool.configure(idle_seconds=0)
    pool.trim_idle()
    assert not pool.has_idle_memory()
    assert pool.statistics()["trimmed_bytes"] - trimmed_bytes == 4 * MIB


@pytest.mark.parametrize("live_count", [0, 1])
def test_memory_idle_for_too_long_goes_in_passing(live_count):
    live = [pool.allocate(MIB) for _ in range(live_count)]
    pool.allocate(4 * MIB)
    pool.configure(idle_seconds=0)
    if live:
        live.clear()
    else:
        live.append(pool.allocate(64 * KIB))
    assert not pool.has_idle_memory()


def test_under_pressure_nothing_is_kept():
    live = pool.allocate(MIB)
    pool.allocate(4 * MIB)
    pool.set_pressure_limit(1)
    assert pool.statistics()["pressure_limit_bytes"] == 1
    del live
    assert pool.statistics()["idle_bytes"] == 4 * MIB
    pool.trim_idle()
    assert not pool.has_idle_memory()


@pytest.mark.resident
def test_pressure_is_measured_by_the_resident_memory_of_the_process():
    pool.set_pressure_limit(resident_bytes() + 100 * MIB)
    pool.allocate(4 * MIB)
    pool.trim_idle()
    assert pool.has_idle_memory()
    used = np.ones(200 * MIB, "u1")
    pool.set_pressure_limit(resident_bytes() - used.nbytes // 2)
    pool.trim_idle()
    assert not pool.has_idle_memory()
    pool.set_pressure_limit(0)
    pool.allocate(4 * MIB)
    pool.trim_idle()
    assert pool.has_idle_memory()


# ---------------------------------------------------------------- threads, forks, exit


def test_buffers_die_in_any_thread():
    before = pool.statistics()["in_use_count"]
    holders = [[pool.allocate(MIB)] for _ in range(8)]
    threads = [threading.Thread(target=holder.clear) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.statistics()["in_use_count"] == before
    assert pool.statistics()["idle_count"] == 8


def exchange(seed, failures, rounds=400):
    """Allocate and free at random; complain when another thread wrote into a live buffer."""
    choose = random.Random(seed)
    live = []
    for _ in range(rounds):
        array = np.frombuffer(pool.allocate(choose.randrange(1000, 6 * MIB)), "u1")
        array[:: 64 * KIB] = seed
        live.append(array)
        if len(live) > 6:
            freed = live.pop(choose.randrange(6))
            if (freed[:: 64 * KIB] != seed).any():
                failures.append(seed)
        if choose.random() < 0.05:
            pool.trim(choose.randrange(16 * MIB))


def test_threads_allocate_while_native_threads_trim():
    # Longer than nothing and shorter than a tick of the clock: memory is both reused and trimmed.
    pool.configure(max_idle_bytes=16 * MIB, idle_seconds=0.001)
    before = pool.statistics()
    trim_idle, failures, done = native("trim_idle"), [], threading.Event()

    def trim_until_done():
        while not done.is_set():
            trim_idle(0)

    trimmer = threading.Thread(target=trim_until_done)
    workers = [threading.Thread(target=exchange, args=(seed, failures)) for seed in range(1, 4)]
    for thread in [trimmer, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    trimmer.join()
    assert not failures
    after = pool.statistics()
    assert after["in_use_count"] == before["in_use_count"]
    assert after["hits_count"] > before["hits_count"]
    assert after["trimmed_bytes"] > before["trimmed_bytes"]
    assert pool.trim() <= 16 * MIB
    assert pool.statistics()["idle_bytes"] == pool.statistics()["idle_count"] == 0


def test_lists_survive_releases_while_another_thread_trims():
    done = threading.Event()

    def trim_until_done():
        while not done.is_set():
            pool.trim()

    trimmer = threading.Thread(target=trim_until_done)
    trimmer.start()
    for _ in range(200):
        buffers = [pool.allocate(64 * KIB + index) for index in range(1000)]
        assert len({address(buffer) for buffer in buffers}) == 1000
        buffers.clear()
    done.set()
    trimmer.join()
    pool.trim()
    assert pool.statistics()["idle_bytes"] == pool.statistics()["idle_count"] == 0


def test_a_forked_child_goes_on_with_its_own_pool():
    run_script("""
        import os
        from dask_fabric.memory import pool
        live = pool.allocate(4 << 20)
        memoryview(live)[:4] = b"mine"
        pool.allocate(8 << 20)
        child = os.fork()
        if not child:
            seen = pool.statistics()
            right = seen["idle_count"] == 1 and bytes(memoryview(live)[:4]) == b"mine"
            taken = pool.allocate(8 << 20)
            memoryview(live)[:4] = memoryview(taken)[:4] = b"thou"
            right = right and pool.statistics()["hits_count"] == 1
            del live, taken
            right = right and pool.trim() == 12 << 20
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert bytes(memoryview(live)[:4]) == b"mine"
        assert pool.trim() == 8 << 20
    """)


def test_a_fork_in_the_middle_of_trimming_leaves_the_child_a_usable_pool():
    run_script("""
        import os, signal, sys, threading, warnings
        from dask_fabric.memory import pool
        warnings.simplefilter("ignore", DeprecationWarning)   # of forking with threads
        sys.setswitchinterval(1e-5)
        done = threading.Event()
        def trim():
            while not done.is_set():
                pool.trim()
        trimmer = threading.Thread(target=trim)
        trimmer.start()
        for _ in range(100):
            buffers = [pool.allocate(64 << 10) for _ in range(1000)]
            buffers.clear()
            child = os.fork()
            if not child:
                signal.alarm(10)    # a lock that nobody will release
                pool.allocate(64 << 10)
                pool.trim()
                os._exit(0 if pool.statistics()["idle_bytes"] == 0 else 1)
            assert os.waitpid(child, 0)[1] == 0
        done.set()
        trimmer.join()
    """)


def test_interpreter_exits_with_live_buffers():
    run_script("""
        import sys
        import numpy as np
        from dask_fabric.memory import pool
        sys.kept = [np.frombuffer(pool.allocate(n), "u1") for n in (10, 1 << 20, 1 << 24)]
        kept = memoryview(pool.allocate(1 << 22))
    """)

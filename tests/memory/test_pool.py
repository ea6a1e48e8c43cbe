"""The receive-buffer pool: allocation, recycling, and returning memory to the system."""

from __future__ import annotations

import copy
import itertools
import mmap
import pickle
import random
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dask_fabric.errors import ConfigError
from dask_fabric.memory import pool

from .conftest import KIB, MIB, address, flags_of, run_script

# ---------------------------------------------------------------- the buffer


@pytest.mark.parametrize(
    "nbytes", [0, 1, 100, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, 2 * MIB + 1, 7 * MIB]
)
def test_buffer_is_writeable_bytes_of_the_length_asked_for(nbytes):
    buffer = pool.allocate(nbytes)
    view = memoryview(buffer)
    assert (len(buffer), buffer.nbytes, view.nbytes) == (nbytes,) * 3
    assert (view.format, view.itemsize, view.ndim, view.shape) == ("B", 1, 1, (nbytes,))
    assert not view.readonly and view.c_contiguous
    content = bytes(range(256)) * (nbytes // 256 + 1)
    view[:] = content[:nbytes]
    assert bytes(buffer) == content[:nbytes]


def test_buffer_is_made_by_allocate_only():
    with pytest.raises(TypeError, match="allocate"):
        pool.Buffer()
    with pytest.raises(TypeError):
        pool.Buffer(b"junk", 12)
    assert bytes(pool.Buffer.__new__(pool.Buffer)) == b""


def test_buffer_cannot_be_copied_into_a_second_owner():
    for clone in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            clone(pool.allocate(100))


def test_length_of_a_buffer_is_fixed():
    with pytest.raises(AttributeError):
        pool.allocate(10).nbytes = 11


@pytest.mark.parametrize("nbytes", [2 * MIB, 3 * MIB, 100_000_000])
def test_large_buffers_begin_with_a_page_and_may_be_of_huge_ones(nbytes):
    buffer = pool.allocate(nbytes)
    assert address(buffer) % mmap.PAGESIZE == 0
    assert "hg" in flags_of(address(buffer))


def test_pooled_buffers_are_aligned_to_cache_lines():
    assert address(pool.allocate(64 * KIB)) % 64 == 0


@pytest.mark.parametrize("nbytes", [64 * KIB, 2 * MIB, 100_000_000])
@pytest.mark.parametrize("like", [16, 4096 + 48, 63, 2**64 - 1])
def test_a_buffer_lies_in_its_cache_line_as_what_it_is_filled_from(nbytes, like):
    buffer = pool.allocate(nbytes, like)
    assert address(buffer) % 64 == like % 64 // 16 * 16
    memoryview(buffer)[:] = bytes(nbytes)  # all of it is its own
    start = address(buffer) // 64 * 64
    del buffer
    assert address(pool.allocate(nbytes)) == start


def test_negative_length_is_a_value_error():
    with pytest.raises(ValueError, match="-1"):
        pool.allocate(-1)


@pytest.mark.parametrize("nbytes", [1 << 46, 1 << 47, (1 << 47) + 1, sys.maxsize])
def test_absurd_length_is_a_memory_error_that_names_it(nbytes):
    before = pool.statistics()
    with pytest.raises(MemoryError, match=str(nbytes)):
        pool.allocate(nbytes)
    after = pool.statistics()
    assert after["in_use_bytes"] == before["in_use_bytes"]
    assert after["in_use_count"] == before["in_use_count"]


def test_scarce_memory_takes_back_what_is_idle_before_it_fails():
    run_script("""
        import resource
        from dask_fabric.memory import pool
        pool.allocate(512 << 20)
        assert pool.statistics()["idle_count"] == 1
        size = int(open("/proc/self/statm").read().split()[0]) * 4096 + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        kept = pool.allocate(300 << 20)
        assert pool.statistics()["idle_count"] == 0
        try:
            pool.allocate(600 << 20)
        except MemoryError as error:
            assert str(600 << 20) in str(error)
        else:
            raise AssertionError("more memory than the limit")
    """)


# ---------------------------------------------------------------- recycling


@pytest.mark.parametrize("nbytes", [64 * KIB, MIB, 2 * MIB, 10_000_000, 1_000_000_000])
def test_released_memory_is_handed_out_again(nbytes):
    buffer = pool.allocate(nbytes)
    first = address(buffer)
    del buffer
    before = pool.statistics()
    assert nbytes <= before["idle_bytes"] <= max(nbytes * 1.25, 2 * MIB)
    buffer = pool.allocate(nbytes)
    assert address(buffer) == first
    after = pool.statistics()
    assert (after["idle_bytes"], after["idle_count"]) == (0, 0)
    assert after["hits_count"] == before["hits_count"] + 1


def test_most_recently_used_memory_comes_first():
    buffers = [pool.allocate(MIB) for _ in range(4)]
    addresses = [address(buffer) for buffer in buffers]
    while buffers:
        del buffers[0]
    again = [pool.allocate(MIB) for _ in range(4)]
    assert [address(buffer) for buffer in again] == addresses[::-1]


def test_somewhat_larger_idle_memory_is_used_much_larger_is_not():
    buffer = pool.allocate(10 * MIB)
    first = address(buffer)
    del buffer
    assert address(pool.allocate(8 * MIB)) == first
    before = pool.statistics()
    small = pool.allocate(7 * MIB)
    assert pool.statistics()["misses_count"] == before["misses_count"] + 1
    assert address(small) != first


def test_views_keep_the_memory_in_use():
    before = pool.statistics()["in_use_count"]
    array = np.frombuffer(pool.allocate(MIB), "i8")[5:10]
    other = np.ndarray((2, 3), "f4", buffer=pool.allocate(MIB))
    view = memoryview(pool.allocate(MIB)).cast("i")[2:4]
    assert pool.statistics()["in_use_count"] == before + 3
    assert pool.statistics()["idle_count"] == 0
    del array, other, view
    assert pool.statistics()["in_use_count"] == before
    assert pool.statistics()["idle_count"] == 3


def test_memory_in_use_is_counted_as_asked_for():
    before = pool.statistics()
    buffers = [pool.allocate(nbytes) for nbytes in (10, 100_000, 5_000_000)]
    after = pool.statistics()
    assert after["in_use_bytes"] - before["in_use_bytes"] == 5_100_010
    assert after["in_use_count"] - before["in_use_count"] == 3
    del buffers
    assert pool.statistics()["in_use_bytes"] == before["in_use_bytes"]


def test_small_buffers_are_not_pooled():
    before = pool.statistics()
    pool.allocate(64 * KIB - 1)
    after = pool.statistics()
    assert all(after[key] == before[key] for key in ("hits_count", "misses_count", "idle_count"))


def test_live_buffers_never_overlap_and_idle_memory_stays_within_the_bound():
    choose = random.Random(7)
    bound = 24 * MIB
    pool.configure(max_idle_bytes=bound)
    live = {}
    for stamp in range(1, 3000):
        nbytes = int(2 ** choose.uniform(4, 24))
        array = np.frombuffer(pool.allocate(nbytes), "u1")
        array[:: max(1, nbytes // 16)] = stamp % 251
        live[stamp] = array
        while len(live) > 20:
            old = choose.choice(list(live))
            freed = live.pop(old)
            assert (freed[:: max(1, freed.size // 16)] == old % 251).all()
            del freed
            assert pool.statistics()["idle_bytes"] <= bound
    assert pool.statistics()["hits_count"] > 100


class PoolMachine(RuleBasedStateMachine):
    """Any order of calls against a model: the live buffers, by their addresses."""

    def __init__(self):
        super().__init__()
        pool.trim()
        pool.configure(max_idle_bytes=16 * MIB, idle_seconds=3600)
        self.bound = 16 * MIB
        self.live = []
        self.before = pool.statistics()

    def teardown(self):
        self.live.clear()

    @rule(nbytes=st.one_of(
        st.integers(0, 20 * MIB),
        st.sampled_from([64 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB]),
    ))  # fmt: skip
    def allocate(self, nbytes):
        buffer = pool.allocate(nbytes)
        assert buffer.nbytes == nbytes
        if nbytes:
            memoryview(buffer)[-1] = memoryview(buffer)[0] = len(self.live) % 256
            self.live.append(buffer)

    @rule(index=st.integers(0, 1000))
    def release(self, index):
        if self.live:
            del self.live[index % len(self.live)]

    @rule(target_bytes=st.integers(0, 20 * MIB))
    def trim(self, target_bytes):
        idle_bytes = pool.statistics()["idle_bytes"]
        freed_bytes = pool.trim(target_bytes)
        left_bytes = pool.statistics()["idle_bytes"]
        assert left_bytes == idle_bytes - freed_bytes <= target_bytes

    @rule(bound=st.integers(0, 40 * MIB))
    def configure(self, bound):
        pool.configure(max_idle_bytes=bound)
        self.bound = bound

    @rule()
    def trim_idle(self):
        pool.trim_idle()

    @invariant()
    def figures_are_right(self):
        now = pool.statistics()
        in_use = now["in_use_bytes"] - self.before["in_use_bytes"]
        assert in_use == sum(buffer.nbytes for buffer in self.live)
        assert now["in_use_count"] - self.before["in_use_count"] == len(self.live)
        assert 0 <= now["idle_bytes"] <= self.bound
        assert (now["idle_count"] == 0) == (now["idle_bytes"] == 0)
        assert pool.has_idle_memory() == (now["idle_count"] > 0)

    @invariant()
    def nothing_overlaps(self):
        spans = sorted((address(buffer), buffer.nbytes) for buffer in self.live)
        for (start, nbytes), (following, _) in itertools.pairwise(spans):
            assert start + nbytes <= following


TestAnyOrder = PoolMachine.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["max_idle_bytes", "pressure_limit_bytes", "idle_seconds"])
@pytest.mark.parametrize("value", [-1, "1 GiB", True, float("nan"), float("inf"), 2**70, [1], 1j])
def test_unusable_settings_are_refused_by_name(name, value):
    before = pool.statistics()
    with pytest.raises(ConfigError, match=name):
        pool.configure(**{name: value})
    assert pool.statistics() == before


def test_a_refused_setting_leaves_the_others_alone():
    before = pool.statistics()
    with pytest.raises(ConfigError, match="pressure_limit_bytes"):
        pool.configure(max_idle_bytes=5, idle_seconds=7, pressure_limit_bytes=1.5)
    assert pool.statistics() == before


def test_settings_are_seen_in_the_statistics():
    pool.configure(max_idle_bytes=np.int64(5 * MIB), idle_seconds=0.5)
    seen = pool.statistics()
    assert (seen["max_idle_bytes"], seen["idle_seconds"]) == (5 * MIB, 0.5)


def test_defaults_of_a_fresh_process():
    assert run_script("""
        from dask_fabric.memory import pool
        seen = pool.statistics()
        print(seen["max_idle_bytes"], seen["idle_seconds"], seen["pressure_limit_bytes"])
    """).split() == [str(1 << 30), "10.0", "0"]

"""Resident memory of received data: near its size, for all sizes."""

from __future__ import annotations

import random

import pytest

from dask_fabric.memory import pool
from dask_fabric.memory.arrays import new_array

from .conftest import KIB, MIB, run_script

SIZES = [
    64 * KIB, 65 * KIB, 100_000, 300 * KIB, 1_100 * KIB, 1_950 * KIB, 2 * MIB, 2 * MIB + 1,
    2_150 * KIB, 2_816 * KIB, 3_700 * KIB, 4 * MIB, 4_198 * KIB, 6_246 * KIB, 8_294 * KIB,
    16_486 * KIB, 17_900 * KIB, 40 * MIB, 65_638 * KIB,
]  # fmt: skip
MOST = 1.05
BORROWED_BYTES = 32 * MIB  # what slabs of larger classes may add, of all buffers together


def exact_resident_bytes():
    """Give the kernel's exact sum; statm is some pages late."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:")) * KIB


def filled(nbytes, total_bytes):
    """Arrays of the pool, every byte written."""
    arrays = [new_array(nbytes) for _ in range(max(2, total_bytes // nbytes))]
    for array in arrays:
        array[:] = 1
    return arrays


@pytest.mark.resident
@pytest.mark.parametrize("nbytes", SIZES)
def test_fresh_memory_is_resident_as_far_as_it_was_asked_for(nbytes):
    before = exact_resident_bytes()
    arrays = filled(nbytes, 100 * MIB)
    assert exact_resident_bytes() - before <= MOST * nbytes * len(arrays)


@pytest.mark.resident
@pytest.mark.parametrize("nbytes", SIZES)
def test_memory_of_frames_of_the_same_size_is_recycled_as_it_is(nbytes):
    before = exact_resident_bytes()
    filled(nbytes, 100 * MIB)
    misses_count = pool.statistics()["misses_count"]
    arrays = filled(nbytes, 100 * MIB)
    assert pool.statistics()["misses_count"] == misses_count
    assert exact_resident_bytes() - before <= MOST * nbytes * len(arrays)


@pytest.mark.resident
@pytest.mark.parametrize("nbytes", [80 * KIB, MIB, 5 * MIB, 20 * MIB, 160 * MIB])
def test_much_memory_of_smaller_frames_borrows_little(nbytes):
    before = exact_resident_bytes()
    filled(nbytes, 512 * MIB)
    hits_count = pool.statistics()["hits_count"]
    arrays = filled(int(nbytes * 0.82), 512 * MIB)
    assert pool.statistics()["hits_count"] > hits_count or nbytes == 160 * MIB
    pool.trim()
    asked_bytes = sum(array.nbytes for array in arrays)
    assert exact_resident_bytes() - before <= MOST * asked_bytes + BORROWED_BYTES


@pytest.mark.resident
@pytest.mark.parametrize("seed", range(3))
def test_mixed_sizes_that_come_and_go_stay_near_what_they_ask_for(seed):
    choose = random.Random(seed)
    before = exact_resident_bytes()
    live = []
    used_bytes = pool.statistics()["in_use_bytes"]
    for _ in range(400):
        live.append(new_array(int(2 ** choose.uniform(16, 24.5))))
        live[-1][:] = 1
        while sum(array.nbytes for array in live) > 400 * MIB:
            del live[choose.randrange(len(live))]
    asked_bytes = pool.statistics()["in_use_bytes"] - used_bytes
    pool.trim()
    assert asked_bytes > 300 * MIB
    assert exact_resident_bytes() - before <= MOST * asked_bytes + BORROWED_BYTES


def test_what_is_borrowed_is_given_back():
    """Otherwise, after a long time with mixed sizes, the pool would lend nothing."""
    for _ in range(40):
        arrays = [new_array(10 * MIB) for _ in range(3)]
        del arrays
        hits_count = pool.statistics()["hits_count"]
        arrays = [new_array(9 * MIB) for _ in range(3)]
        assert pool.statistics()["hits_count"] == hits_count + 3
        del arrays
        pool.trim()


@pytest.mark.resident
def test_neighbours_that_die_leave_what_is_theirs_alone_resident():
    """Frames share huge pages: a freed one must not keep its part resident."""
    before = exact_resident_bytes()
    arrays = filled(2_500 * KIB, 200 * MIB)
    del arrays[::2]
    pool.trim()
    assert exact_resident_bytes() - before <= MOST * sum(array.nbytes for array in arrays)
    assert all((array == 1).all() for array in arrays)
    arrays.clear()
    pool.trim()
    assert exact_resident_bytes() - before <= 4 * MIB


@pytest.mark.resident
def test_memory_that_is_mapped_and_not_given_out_is_little():
    assert (
        int(
            run_script("""
        from dask_fabric.memory.arrays import new_array
        def mapped_bytes():
            return int(open("/proc/self/statm").read().split()[0]) * 4096
        before = mapped_bytes()
        arrays = [new_array(nbytes) for nbytes in (3 << 20, 30 << 20, 5 << 20, 31 << 20) * 20]
        print(mapped_bytes() - before - sum(array.nbytes for array in arrays))
    """)
        )
        < 200 * MIB
    )

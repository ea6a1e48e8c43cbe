"""Arrays that own memory of the pool: their owner, and that memory returns exactly once."""

from __future__ import annotations

import gc
import random
import sys
import threading

import numpy as np
import pytest

from dask_fabric.memory import pool
from dask_fabric.memory.arrays import new_array

from .conftest import KIB, MIB, run_script

if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    from numpy._core.multiarray import get_handler_name
else:
    from numpy.core.multiarray import get_handler_name


def in_use():
    figures = pool.statistics()
    return figures["in_use_count"], figures["in_use_bytes"]


@pytest.mark.parametrize("nbytes", [1, 1000, 64 * KIB, MIB, 7 * MIB + 3])
def test_array_owns_writeable_bytes_of_the_pool(nbytes):
    count, used = in_use()
    array = new_array(nbytes)
    assert in_use() == (count + 1, used + nbytes)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.base) == ((nbytes,), np.uint8, None)
    assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
    view = memoryview(array)
    assert (view.format, view.nbytes, view.readonly) == ("B", nbytes, False)
    array[:] = 7
    assert bytes(view) == b"\7" * nbytes


def test_memory_comes_back_with_the_last_view_and_is_handed_out_again():
    before = in_use()
    array = new_array(MIB)
    first = array.ctypes.data
    view = np.ndarray((1000,), "f8", buffer=memoryview(array), offset=8)[5:10]
    del array
    assert in_use() == (before[0] + 1, before[1] + MIB)
    del view
    assert in_use() == before
    assert pool.statistics()["idle_count"] == 1
    assert new_array(MIB).ctypes.data == first


@pytest.mark.parametrize("nbytes", [64 * KIB, 3 * MIB])
@pytest.mark.parametrize("new_nbytes", [1, 70_000, 5 * MIB])
def test_resized_array_keeps_its_content_and_leaves_the_pool(nbytes, new_nbytes):
    before = in_use()
    array = new_array(nbytes)
    array[:] = np.arange(nbytes) % 251
    array.resize(new_nbytes)
    assert in_use() == before
    kept = min(nbytes, new_nbytes)
    assert (array[:kept] == np.arange(kept) % 251).all()
    assert not array[kept:].any()
    array.resize(100_000)
    assert (array[: min(kept, 100_000)] == np.arange(min(kept, 100_000)) % 251).all()
    del array
    assert in_use() == before


def test_other_arrays_have_numpys_own_memory():
    before = in_use()
    array = new_array(MIB)
    copies = [array.copy(), np.empty(MIB, "u1"), np.zeros(MIB, "u1"), array + 1]
    assert get_handler_name(array) == "dask_fabric"
    assert {get_handler_name(copy) for copy in copies} == {"default_allocator"}
    assert in_use()[0] == before[0] + 1


@pytest.mark.parametrize(("nbytes", "error"), [(-1, ValueError), (1 << 47, MemoryError)])
def test_an_impossible_length_is_named_and_changes_nothing(nbytes, error):
    before = in_use()
    with pytest.raises(error, match=str(nbytes)):
        new_array(nbytes)
    assert in_use() == before
    assert get_handler_name(np.empty(10)) == "default_allocator"


def test_arrays_made_and_resized_by_a_finalizer_in_between_are_sound():
    before = in_use()
    strangers = []

    def make_strangers(phase, info):
        for make in (np.empty, np.zeros):
            strangers.append(make(MIB, "u1"))
            strangers[-1][:] = 1
        strangers[-1].resize(2 * MIB, refcheck=False)

    thresholds = gc.get_threshold()
    gc.callbacks.append(make_strangers)
    gc.set_threshold(1)
    try:
        arrays = [new_array(MIB) for _ in range(20)]
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(make_strangers)
    for array in arrays:
        array[:] = 2
    assert strangers and all((array[:MIB] == 1).all() for array in strangers)
    assert all((array == 2).all() for array in arrays)
    del array, arrays
    strangers.clear()
    assert in_use() == before


def test_many_live_arrays_die_in_any_order():
    before = in_use()
    arrays = [new_array(64 * KIB) for _ in range(10_000)]
    for stamp, array in enumerate(arrays):
        array[:8].view("i8")[0] = stamp
    order = list(enumerate(arrays))
    del array, arrays
    random.Random(3).shuffle(order)
    while order:
        stamp, array = order.pop()
        assert array[:8].view("i8")[0] == stamp
        del array
        assert in_use()[0] == before[0] + len(order)
    assert in_use() == before


def test_threads_get_arrays_of_their_own():
    before = in_use()
    wrong = []

    def work(stamp):
        choose = random.Random(stamp)
        live = []
        for _ in range(300):
            live.append(new_array(choose.choice((64 * KIB, 65 * KIB, MIB))))
            live[-1][:: 16 * KIB] = stamp
            if len(live) > 5:
                old = live.pop(choose.randrange(5))
                if not (old[:: 16 * KIB] == stamp).all():
                    wrong.append(stamp)

    threads = [threading.Thread(target=work, args=(stamp,)) for stamp in range(1, 5)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert in_use() == before


def test_a_forked_child_frees_what_it_inherited():
    run_script("""
        import os
        from dask_fabric.memory import arrays, pool
        live = arrays.new_array(4 << 20)
        live[:] = 1
        child = os.fork()
        if not child:
            del live
            seen = pool.statistics()
            os._exit(0 if (seen["in_use_count"], seen["idle_count"]) == (0, 1) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert live.all() and pool.statistics()["in_use_count"] == 1
    """)


def test_interpreter_exits_with_live_arrays():
    run_script("""
        import sys
        from dask_fabric.memory.arrays import new_array

        class Last:
            def __init__(self):
                self.array = new_array(1 << 20)
                self.cycle = self
            def __del__(self):
                self.array[:] = 3

        sys.kept = [memoryview(new_array(n)) for n in (10, 1 << 20, 1 << 24)]
        kept = Last()
        sys.modules["kept"] = Last()
    """)


def test_arrays_die_while_an_exception_is_on_its_way():
    before = in_use()

    def fail():
        array = new_array(MIB)
        raise KeyError(array.size)

    with pytest.raises(KeyError, match=str(MIB)) as caught:
        fail()
    del caught
    gc.collect()
    assert in_use() == before

"""Pinned memory of the pool: pinned once, handed out again, and never given back to the system.

In processes of their own, because it stays pinned.
"""

from __future__ import annotations

import pytest

from .conftest import run_script

HEAD = """
import numpy as np
from dask_fabric.memory import pool
from dask_fabric.memory.arrays import new_array, pin

MIB = 1 << 20
pins = []

def note(address, nbytes):
    pins.append((address, nbytes))
"""


def test_a_slab_is_pinned_once_and_kept():
    run_script(
        HEAD
        + """
array = new_array(3 * MIB)
assert pin(array, note) and pin(array, note)
((address, nbytes),) = pins
start = array.ctypes.data
assert address <= start and start + array.nbytes <= address + nbytes
capacity = pool.statistics()["pinned_bytes"]
assert 3 * MIB <= capacity <= 4 * MIB

for _ in range(3):
    del array
    pool.trim()
    pool.configure(pressure_limit_bytes=1)      # all that is idle goes, but for this
    assert (pool.statistics()["idle_bytes"], pool.statistics()["idle_count"]) == (0, 0)
    pool.trim_idle()
    pool.configure(pressure_limit_bytes=0)
    array = new_array(3 * MIB)
    assert address <= array.ctypes.data < address + nbytes
    array[:] = 1
    assert pin(array, note)
assert len(pins) == 1 and pool.statistics()["pinned_bytes"] == capacity
"""
    )


def test_pinned_and_other_slabs_of_a_class_live_side_by_side():
    run_script(
        HEAD
        + """
arrays = [new_array(2 * MIB) for _ in range(8)]
for array in arrays[::2]:
    pin(array, note)
del array, arrays
assert pool.statistics()["idle_count"] == 4
assert pool.trim() == 4 * 2 * MIB
arrays = [new_array(2 * MIB) for _ in range(5)]
assert sum(pin(array, note) for array in arrays) == 5
assert len(pins) == 5
"""
    )


def test_what_cannot_be_pinned_is_left_alone():
    run_script(
        HEAD
        + """
for other in (new_array(100), new_array(MIB), np.zeros(4 * MIB, "u1"), bytearray(9), b"", None):
    assert not pin(other, note)

def fail(address, nbytes):
    raise MemoryError("locked memory")

array = new_array(4 * MIB)
try:
    pin(array, fail)
except MemoryError as error:
    assert str(error) == "locked memory"
else:
    raise AssertionError
assert pool.statistics()["pinned_bytes"] == 0 and not pins
pool.configure(max_idle_bytes=0)                # nothing is kept, so nothing is pinned
assert not pin(new_array(4 * MIB), note)
"""
    )


def test_pinned_memory_has_a_bound():
    run_script(
        HEAD
        + """
arrays = [new_array(64 * MIB) for _ in range(5)]
assert [pin(array, note) for array in arrays] == [True] * 4 + [False]
assert pool.statistics()["pinned_bytes"] == 256 * MIB
"""
    )


@pytest.mark.parametrize("chunk", ["4 MiB", "1 MiB"])
@pytest.mark.slow
def test_staging_pins_its_chunks_from_two_mib_up(chunk):
    run_script(
        f"""
        import asyncio, dask, sys
        import numpy as np
        from distributed.comm import connect, listen
        from distributed.protocol import to_serialize
        from dask_fabric.comm.runtime import settings
        from dask_fabric.memory import device, pool
        from tests.device import StandIn

        async def main():
            accepted = asyncio.Queue()
            listener = await listen("fabric+tcp://127.0.0.1", accepted.put)
            a = await connect(listener.contact_address)
            b = await accepted.get()
            for _ in range(3):
                await a.write({{"x": to_serialize(gpu.array(np.arange(5 << 20)))}})
                assert ((await b.read())["x"].get() == np.arange(5 << 20)).all()
                pool.trim()
            a.abort(), b.abort(), listener.stop()

        dask.config.set({{"fabric.gpu.chunk": "{chunk}"}})
        settings()
        gpu = StandIn()
        device.install(gpu)
        asyncio.run(main())
        assert max(gpu.copied_bytes) == {chunk[0]} << 20
        if {chunk[0]} == 4:
            assert 0 < len(gpu.pinned) <= 20    # of 60 copies
        else:
            assert not gpu.pinned
        """
    )

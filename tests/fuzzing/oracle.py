"""What no input may cause, and how it is noticed at little cost.

* an exception that is not ours;
* more than `STALL_SECONDS` of CPU time;
* more than `MEMORY_BYTES` of memory;
* descriptors, Python objects or memory of C that stay (a leak).

Time is measured for each input, and memory and descriptors for batches of them. Whatever looks
wrong is run again, input by input, before it counts: a busy machine charges a process for what is
not its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import time
import traceback
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dask_fabric.errors import FabricError

from .registry import Target

STALL_SECONDS = 0.05
MEMORY_BYTES = 64 << 20
BATCH_COUNT = 1000
_AGAIN_COUNT = 3
# Rounds of one input in search of leaks: without and with a measurement; at first, and to be sure.
_QUICK_ROUNDS = 8, 3
_SURE_ROUNDS = 500, 50


class Fault(NamedTuple):
    """What an input has caused."""

    kind: str  # one word
    text: str
    data: bytes


class Oracle:
    """Runs inputs of one target.

    Parameters
    ----------
    target : Target
    report : callable
        Called with each `Fault`.
    """

    def __init__(self, target: Target, report: Callable[[Fault], object]) -> None:
        self._run = target.run
        self._report = report
        for seed in target.seeds:  # what is made once is nobody's leak
            _swallow(self._run, seed)
        gc.collect()
        gc.freeze()  # what the collector spends on modules is not the input's fault
        self._begin_batch()

    def __call__(self, data: bytes) -> None:
        """Run one input."""
        begin = time.thread_time()
        try:
            self._run(data)
        except FabricError:
            pass
        except Exception as error:
            self._report(Fault("exception", _where(error), data))
        if time.thread_time() - begin > STALL_SECONDS:
            self._check_stall(data)
        self._batch.append(data)
        if len(self._batch) == BATCH_COUNT:
            self.end_batch()

    def end_batch(self) -> None:
        """Check what the last inputs have cost, and one of them for leaks."""
        batch = self._batch
        grown_bytes = _resident_bytes("VmHWM") - self._resident_bytes
        if grown_bytes > MEMORY_BYTES or _descriptor_count() > self._descriptor_count:
            for data in batch:
                self._check_memory(data)
        if batch:
            self.check_leaks(batch[-1])
        self._begin_batch()

    def check_leaks(self, data: bytes) -> None:
        """Run one input often, and look for what stays each time."""
        if any(self._grown(data, *_QUICK_ROUNDS)):
            for what, grown in zip(_KEPT, self._grown(data, *_SURE_ROUNDS), strict=True):
                if grown:
                    self._report(Fault("leak", f"{grown} {what} stay each time", data))

    def _grown(self, data: bytes, settling_count: int, round_count: int) -> list[int]:
        """Give by how much each of `_KEPT` grows at least, each time that an input is run.

        At first an input is run without a measurement: malloc, Python and NumPy keep for reuse
        what is freed.
        """
        least_grown = array("q", [1 << 62] * len(_KEPT))
        before = array("q", bytes(8 * len(_KEPT)))  # arrays, so that nothing is allocated here
        for round_number in range(settling_count + round_count + 1):
            _swallow(self._run, data)
            gc.collect()
            for index, count_kept in enumerate(_KEPT.values()):
                kept = count_kept()
                if round_number > settling_count:
                    least_grown[index] = min(least_grown[index], kept - before[index])
                before[index] = kept
        return [max(0, grown) for grown in least_grown]

    def _begin_batch(self) -> None:
        self._batch: list[bytes] = []
        self._descriptor_count = _descriptor_count()
        self._resident_bytes = _forget_peak()

    def _check_stall(self, data: bytes) -> None:
        seconds = min(_seconds_of(self._run, data) for _ in range(_AGAIN_COUNT))
        if seconds > STALL_SECONDS:
            self._report(Fault("stall", f"{seconds * 1e3:.0f} ms of CPU time", data))

    def _check_memory(self, data: bytes) -> None:
        descriptor_count, before_bytes = _descriptor_count(), _forget_peak()
        _swallow(self._run, data)
        grown_bytes = _resident_bytes("VmHWM") - before_bytes
        if grown_bytes > MEMORY_BYTES:
            self._report(Fault("memory", f"{grown_bytes >> 20} MiB", data))
        gc.collect()
        if _descriptor_count() > descriptor_count:
            self._report(Fault("leak", "a descriptor stays open", data))


def _swallow(run: Callable, data: bytes) -> None:
    """Run an input whose exceptions were reported before."""
    with contextlib.suppress(Exception):
        run(data)


def _seconds_of(run: Callable, data: bytes) -> float:
    begin = time.thread_time()
    _swallow(run, data)
    return time.thread_time() - begin


def _where(error: Exception) -> str:
    frames = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(frames).strip()


def signature(fault: Fault) -> Sequence[str]:
    """Give what faults of the same cause have in common: their kind, and lines of the traceback."""
    lines = [line for line in fault.text.splitlines() if line.startswith("  File ")]
    return (fault.kind, *lines[-2:])


def _descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(field))
    return int(line.split()[1]) << 10


def _forget_peak() -> int:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again from VmRSS: proc(5)
    return _resident_bytes("VmRSS")


class _Mallinfo(ctypes.Structure):
    """See mallinfo2(3): the numbers of interest are the 5th and the 8th."""

    _fields_ = [("_others", 4 * ctypes.c_size_t), ("hblkhd", ctypes.c_size_t)]
    _fields_ += [("_more", 2 * ctypes.c_size_t), ("uordblks", ctypes.c_size_t)]
    _fields_ += [("_rest", 2 * ctypes.c_size_t)]


_mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc since 2.33
if _mallinfo is not None:
    _mallinfo.restype = _Mallinfo


def _allocated_bytes() -> int:
    if _mallinfo is None:
        return 0
    found = _mallinfo()
    return found.uordblks + found.hblkhd


# What an input may leave behind, and how it is counted.
_KEPT = {
    "descriptors": _descriptor_count,
    "objects": sys.getallocatedblocks,
    "bytes of C": _allocated_bytes,
}

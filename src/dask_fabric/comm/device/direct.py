"""Device memory that travels from device to device: what a channel asks about it.

Paths that cannot carry it go through host memory; see `dask_fabric.comm.device.staging_send`.
"""

from __future__ import annotations

from typing import Any

from dask_fabric.memory import arrays
from dask_fabric.memory.device import Runtime, StagedFrame, known_span


class Devices:
    """The runtime of this process, as a channel that offers frames of devices needs it.

    Parameters
    ----------
    runtime : dask_fabric.memory.device.Runtime
    """

    def __init__(self, runtime: Runtime) -> None:
        self.span_of = runtime.span_of
        self.allocate = runtime.allocate
        self.await_producers = runtime.await_producers
        self._runtime = runtime

    @staticmethod
    def stage(memory: Any) -> StagedFrame:
        """Make a frame that belongs on a device over host memory: whoever reads puts it there."""
        return StagedFrame.over(memory)

    def copy_to_host(self, frames: list) -> list:
        """Give frames in host memory, those too that are there already; blocks.

        They have been offered, so nothing computes them any more.
        """
        return [f if isinstance(f, memoryview) else self._copied(f) for f in frames]

    def _copied(self, frame: Any) -> memoryview:
        span = known_span(self._runtime, frame)
        # Not pinned: it happens once in the life of a comm, if the path breaks.
        memory = memoryview(arrays.new_array(span.nbytes))
        self._runtime.copy_to_host(span, 0, memory).wait()
        return memory

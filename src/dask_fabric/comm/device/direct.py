"""Device memory sent from device to device: the runtime as a channel needs it.

Without such a path it is staged in host memory; see `dask_fabric.comm.device.staging_send`.
"""

from __future__ import annotations

from typing import Any

from dask_fabric.memory import arrays
from dask_fabric.memory.device import Runtime, StagedFrame, known_span


class Devices:
    """The device runtime of this process, as a channel that offers device frames needs it.

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
        """Wrap host memory as a frame that belongs on a device; the reader uploads it."""
        return StagedFrame.over(memory)

    def copy_to_host(self, frames: list) -> list:
        """Copy device frames to host memory, and pass on host frames; blocks.

        All have been offered, so the kernels that compute them have finished.
        """
        return [f if isinstance(f, memoryview) else self._copied(f) for f in frames]

    def _copied(self, frame: Any) -> memoryview:
        span = known_span(self._runtime, frame)
        # Not pinned: this happens once per comm at most, when its path breaks.
        memory = memoryview(arrays.new_array(span.nbytes))
        self._runtime.copy_to_host(span, 0, memory).wait()
        return memory

"""One end of a comm's frames by cross memory attach.

A frame on offer is described by its address. The loop itself copies what is little and resident in
the sender's memory; the rest is one job of native threads for each transfer.

Nothing of a sender's memory that may be slow to read is read in the loop: such a read cannot be
interrupted. A copy that does not go on for `STALLED_SECONDS` is abandoned, and its frames are
requested.
"""

from typing import Final

from dask_fabric.paths.cma.process import Process
from dask_fabric.wire.path import Path

NAME = "cma"
NUMBER = 1
TEND_SECONDS = 0.25
STALLED_SECONDS = 5.0

class CMAPath(Path):
    """Frames of a process of this host, which are read out of its memory.

    Parameters
    ----------
    process : dask_fabric.paths.cma.process.Process
        That was found to be the peer.
    least_bytes : int
        From which size on a frame is offered.
    """

    process: Final[Process]

    def __init__(self, process: Process, least_bytes: int): ...

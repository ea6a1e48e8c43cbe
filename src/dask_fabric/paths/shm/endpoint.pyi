"""One end of a comm's frames by shared memory.

A frame that lies in the memory file of its sender, or is mapped there from the file of a third
process, is described by its place in that file. The receiver maps it: nothing is copied.

What the receiver has mapped stays as it is, whatever becomes of the sender: the memory file knows
who has what mapped (`dask_fabric.memory.files`). So a fetched frame needs no living sender.
"""

from collections.abc import Callable
from typing import Any

from dask_fabric.wire.path import Path

NAME = "shm"
NUMBER = 3
TEND_SECONDS = 0.001
PATIENCE_SECONDS = 0.5
SILENT_LIMIT = 1024

class SHMPath(Path):
    """Frames in memory files of processes of this host.

    Parameters
    ----------
    peer : int
        The peer's process; see `dask_fabric.memory.files.open_file_of_process`.
    attach : callable
        Called with the process of a frame, where its file is not known yet. Returns the reason why
        it cannot be had, or "".
    least_bytes : int
        From which size on a frame is offered.
    """
    def __init__(self, peer: int, attach: Callable[..., Any], least_bytes: int): ...

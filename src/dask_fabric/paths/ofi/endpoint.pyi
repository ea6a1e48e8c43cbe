"""The endpoint of the `ofi` path: fetches frames by reads of remote memory.

The sender registers a frame's memory when it offers the frame. The descriptor tells the receiver
what to read. A transfer is one job of libfabric's thread.

A peer that is stopped, or was killed on some providers, is never reported. So a job without
progress for `STALLED_SECONDS` is abandoned, its frames are requested over the stream, and for
`REFUSED_NS` the path fetches nothing. The sender offers by it again once it has read the
peer's nonce.

A read of memory that is not registered any more is a fault: some providers then break the
connection of the two processes, and may never report the end of other reads. So at the end of a
comm, and after a transfer that was abandoned, released frames stay registered for a while (`hold`).
"""

from _typeshed import Incomplete

from dask_fabric.paths.ofi.nonces import Nonce
from dask_fabric.wire.path import Path

NAME = "ofi"
NUMBER: Incomplete = ...
TEND_SECONDS = 0.25
STALLED_SECONDS = 5.0

class OFIPath(Path):
    """Reads frames out of the memory of a peer.

    Parameters
    ----------
    theirs : mapping
        The peer's description; see `dask_fabric.paths.ofi.worker.facts`.
    least_bytes : int
        The smallest frame that is offered.
    own : dask_fabric.paths.ofi.nonces.Nonce, optional
        What the own description has of this connection alone: revoked at its end.

    Notes
    -----
    `offers` is false if libfabric does not run here; this side then sends on the stream.
    """
    def __init__(self, theirs, least_bytes: int, own: Nonce | None = None): ...
    def retry(self) -> float: ...

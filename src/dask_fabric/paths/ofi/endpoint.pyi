"""The endpoint of the `ofi` path: fetches frames by reads of remote memory.

The sender registers a frame's memory when it offers the frame. The descriptor tells the receiver
what to read. A transfer is one job of libfabric's thread.

A peer that is stopped, or was killed on some providers, is never reported. So a job without
progress for `STALLED_SECONDS` is abandoned, its frames are requested over the stream, and for
`REFUSED_NS` the path fetches nothing. The sender offers by it again once it has read the
peer's nonce.
"""

from _typeshed import Incomplete

from dask_fabric.wire.path import Path

NAME = "ofi"
NUMBER: Incomplete = ...
TEND_SECONDS = 0.25
STALLED_SECONDS = 5.0

class OFIPath(Path):
    """Reads frames out of the memory of a peer.

    Parameters
    ----------
    name : bytes
        The address of the peer's endpoint.
    nonce : bytes
        Of the peer.
    address, key : int
        Where that can be read.
    least_bytes : int
        The smallest frame that is offered.

    Notes
    -----
    `offers` is false if libfabric does not run here; this side then sends on the stream.
    """
    def __init__(self, name: bytes, nonce: bytes, address: int, key: int, least_bytes: int): ...
    def retry(self) -> float: ...

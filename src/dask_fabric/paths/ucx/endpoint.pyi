"""The endpoint of the `ucx` path.

The sender starts to send a frame when it offers it. The receiver fetches a frame by posting a
receive. No descriptor is needed: both sides name a frame by its message and its index there.
"""

from dask_fabric.wire.path import Path

NAME = "ucx"
NUMBER = 2
GREETING_SECONDS = 3.0
PATIENCE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 50000000.0

class UCXPath(Path):
    """Moves frames of host and device memory by UCX.

    Parameters
    ----------
    own_token, peer_token : int
        Identify the two endpoints.
    address : bytes
        Of the peer's worker.
    peer_pid : int
        The peer's process, if the kernel reports it; else 0.
    for_host : bool
        Whether it takes frames of host memory.
    device_kind : int or None
        If it takes device frames, their kind of memory in UCX's numbering.

    Notes
    -----
    `offers` is false if UCX did not accept the address; this side then sends on the stream.
    """
    def __init__(
        self,
        own_token: int,
        peer_token: int,
        address: bytes,
        peer_pid: int = 0,
        for_host: bool = True,
        device_kind: int | None = None,
    ): ...
    def retry(self) -> float: ...

"""One end of a comm's frames by UCX.

The sender starts to send a frame when it offers it, and the receiver says where it goes. A frame
needs no descriptor: both sides name it by the message and by its index in that.
"""

from dask_fabric.wire.path import Path

NAME = "ucx"
NUMBER = 2
GREETING_SECONDS = 3.0
PATIENCE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 50000000.0

class UCXPath(Path):
    """Frames by UCX, of host memory and of devices.

    Parameters
    ----------
    own_token, peer_token : int
        What names the two ends.
    address : bytes
        Of the peer's worker.
    peer_pid : int
        The peer's process, where the kernel says it; else 0.
    for_host : bool
        Whether frames of host memory travel by it.
    device_kind : int or None
        For frames of device memory, if they do: what memory that is, as UCX numbers them.

    Notes
    -----
    `offers` is false where UCX has not taken the address; this side then sends on the stream.
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

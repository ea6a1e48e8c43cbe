"""The endpoint of the `cma` path: fetches frames by cross memory attach.

The descriptor of a frame is its address. The loop itself copies small frames whose pages are all
resident in the sender. Otherwise a transfer is one job of native threads.

The loop never reads pages that may be slow, because such a read cannot be interrupted. A job
without progress for `STALLED_SECONDS` is abandoned, and its frames are requested.
"""

from typing import Final

from dask_fabric.paths.cma.process import Process, Secret
from dask_fabric.wire.path import Path

NAME = "cma"
NUMBER = 1
TEND_SECONDS = 0.25
STALLED_SECONDS = 5.0

class CMAPath(Path):
    """Reads frames out of the memory of the peer, a process of this host.

    Parameters
    ----------
    process : dask_fabric.paths.cma.process.Process
        The peer, as verified by its secret.
    least_bytes : int
        The smallest frame that is offered.
    secret : dask_fabric.paths.cma.process.Secret, optional
        Of this side, for this connection alone: revoked at its end.
    address, nonce : int, bytes
        The peer's secret, if that is for this connection alone: where it is, and its 16 bytes.
    """

    process: Final[Process]

    def __init__(
        self,
        process: Process,
        least_bytes: int,
        secret: Secret | None = None,
        address=0,
        nonce: bytes = b"",
    ): ...

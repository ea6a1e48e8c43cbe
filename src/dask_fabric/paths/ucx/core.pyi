"""The `ucx` path: frames as active messages, from the sender's memory into the receiver's.

A frame is one message with a header that names the receiver's endpoint, the message of the comm and
the frame in it. The receiver posts where a frame is to go, before or after it comes. Nothing that
a peer claims is believed: a length other than the posted one fails the receive.
"""

from collections.abc import Iterable
from typing import Any

from dask_fabric.paths.ucx.library import Library

def start(
    library: Library,
    options: Iterable[tuple[str, str]] = (),
    defaults: dict[str, str] | None = None,
    estimated_endpoints: int = 64,
):
    """Start UCX in this process; without effect where it runs on that library.

    Parameters
    ----------
    library : dask_fabric.paths.ucx.library.Library
        What the loader has chosen.
    options : iterable of (str, str)
        UCX's settings, without ``UCX_``. The environment wins.
    defaults : dict of str to str, optional
        More of them, which options and the environment win over.
    estimated_endpoints : int
        How many peers to expect: UCX chooses transports that scale by it.

    Raises
    ------
    ForkedError
        This is a forked child, where UCX cannot be used.
    UnavailableError
        The library cannot be loaded, or another one runs already.
    LibraryError
        UCX does not start.
    """

def version() -> tuple[int, ...]:
    """Give the version of UCX that runs here; both ends of a connection must have the same one.

    Returns
    -------
    tuple of int
        Three numbers.
    """

def address() -> bytes:
    """Give the address of this process for its peers.

    Returns
    -------
    bytes
    """

def statistics() -> dict[str, Any]:
    """Endpoints, connections and operations of this process.

    Returns
    -------
    dict
        ``endpoint_count``, ``peer_count`` (that UCX was asked to connect to), ``connection_count``
        (open), ``kept_count`` (frames that came before they were posted), ``break_count``
        (connections given up while in use), ``held_count`` (offers that wait for the peer to be
        wired up), ``posted_count`` (receives that wait for their frame), ``in_flight_count``,
        ``abandoned_count`` (cancelled, but not let go of by UCX) and ``refused_count`` (messages
        that were of no endpoint or did not fit).
    """

"""The `ucx` path: frames as active messages, from the sender's memory into the receiver's.

Theory of operation
-------------------
A frame is one active message. Its header names the receiver's endpoint, the message of the comm,
and the frame's index in it. The receiver *posts* a receive with the destination, before or after
the frame arrives (`unexpected` holds it meanwhile). A length that differs from the posted one fails
the receive.

The actors: one UCX `worker` per process, with a progress thread that never takes the GIL; a `Peer`
for each remote worker, with at most one connection (`peers`); any number of endpoints per peer, one
for each comm; and operations (`operations`), each a send or a receive of one frame.

An operation goes through these states:

* HELD: a send that waits until the peer's endpoint has greeted; or POSTED: a receive without a
  frame.
* IN_FLIGHT: UCX uses its memory.
* ENDED: done or failed. The progress thread then calls its callback (REPORTING) without the lock,
  and frees it.
* ABANDONED: cancelled, but UCX may still use its memory. It is freed when UCX ends it, maybe never.

`Worker.mutex` guards UCX and all of this. A call takes the lock (`lock`), changes the state, and
wakes the progress thread (`unlock_and_wake`).

An operation in flight cannot be cancelled alone: UCX's cancel does nothing for a rendezvous. So
`cancel` and `close_endpoint` break the whole connection, which fails the operations of other
endpoints to that peer too. They wait a bounded time for UCX to end the operation, then abandon it.
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
    """Start UCX in this process; no effect if it runs already, on the same library.

    Parameters
    ----------
    library : dask_fabric.paths.ucx.library.Library
        The library that the loader has chosen.
    options : iterable of (str, str)
        UCX's settings, without the prefix ``UCX_``. The environment takes precedence.
    defaults : dict of str to str, optional
        Settings of lower precedence than options and environment.
    estimated_endpoints : int
        The expected number of peers, by which UCX chooses transports that scale.

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
    """Return the version of UCX that runs here; both ends of a connection need the same one.

    Returns
    -------
    tuple of int
        Three numbers.
    """

def address() -> bytes:
    """Return the UCX address of this process, for its peers.

    Returns
    -------
    bytes
    """

def statistics() -> dict[str, Any]:
    """Count the endpoints, connections and operations of this process.

    Returns
    -------
    dict
        ``endpoint_count``, ``peer_count`` (all peers so far), ``connection_count`` (open),
        ``kept_count`` (frames that arrived before their receive was posted), ``break_count``
        (connections that broke while in use), ``held_count`` (offers that wait for the peer to be
        wired up), ``posted_count`` (receives that wait for their frame), ``in_flight_count``,
        ``abandoned_count`` (cancelled, but not ended by UCX) and ``refused_count`` (frames for
        unknown endpoints, or that did not fit).
    """

"""A channel: messages over one connected socket, in one event loop.

Theory of operation
-------------------
The protocol is a `Connection` (`core`), which does no I/O. The channel drives it: it watches the
socket, moves bytes between socket and core, runs the transfers, and wakes the task that awaits
`receive`. After each call of the core it serves the bits of `core.wants`.

Small data is read and written by the loop itself, with the GIL held: moving some KiB takes
microseconds, but a released GIL may take 5 ms to get back (dask/distributed#6325). Large data is
one job of native threads, which wakes the loop once, when all bytes have moved. Inside TLS the loop
moves everything (`transport`). At most one receive job, one send job and one transfer run at a
time; their completions call `_job_ended`.

Writes of one turn of the loop leave together: the first is sent at once, others soon after it are
corked until the turn ends. Answers are corked too, so that they leave with the reader's reply.

Backpressure on the peer: without a pending `receive`, the channel watches the socket until the
staging buffer is full, and only processes control records.

The order at the end (`_fail`, `_release`) matters:

1. Send what is queued, once, without waiting.
2. Stop the jobs. Memory that a stuck thread still uses goes to quarantine.
3. If frames are on offer, end the stream visibly. The peer checks for that end after it has read
   the frames, so it must come before their memory is freed.
4. Stop watching the socket, then close it.
5. Release the leases, and fail the pending `receive`.
"""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Final

from dask_fabric.config import Settings
from dask_fabric.engine.transport import Transport
from dask_fabric.wire.connection import Connection
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.path import Path

logger = logging.getLogger(__name__)

class Channel:
    """Messages over one connected socket.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop; every method is called in its thread.
    transport : Transport
        Owns the socket; owned by the channel from now on.
    handshake : dask_fabric.wire.handshake.Handshake
    settings : dask_fabric.config.Settings
    negotiator : dask_fabric.comm.channels.negotiator.Negotiator, optional
        Chooses the paths of large frames; without it they stay on the stream.

    Attributes
    ----------
    closed : bool
        Whether either side has closed. No read is needed to notice that.
    error : Exception or None
        Why the channel has ended; None for a local close.
    choice : dask_fabric.paths.negotiation.Choice or None
        The chosen paths, after `open`. At a server more may follow with the client's first record.
    local_sockname, peer_sockname : tuple or str
        As from `socket.getsockname` and `socket.getpeername`.
    ends : tuple of str or None
        The local and the peer's address, once they are known.
    name_ends : callable or None
        Returns both addresses of the channel as users see them.
    observer : object or None
        Its ``closed(channel)`` is called once. It must not keep the channel's owner alive.
    tells_activity : bool
        Whether to call the observer's ``active()`` before the channel moves anything; then False.
    log_warning : callable
        Logs a line that a peer has caused, by loop, kind for a count of many, text and arguments.

    Notes
    -----
    Messages that were received before the peer's end stay readable when `closed` is true.
    """

    loop: Final[Any]
    core: Final[Connection]
    transport: Final[Transport]
    handshake: Final[Any]
    choice: Any
    closed: Final[bool]
    error: Final[Any]
    observer: Any
    tells_activity: bool
    local_sockname: Final[Any]
    peer_sockname: Final[Any]
    log_warning: Any
    name_ends: Any
    ends: Any

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        handshake: Handshake,
        settings: Settings,
        negotiator=None,
    ): ...
    def __del__(self): ...
    async def open(self, timeout_seconds: float | None = None):
        """Exchange hellos with the peer. On an error the channel is closed.

        Parameters
        ----------
        timeout_seconds : float, optional
            How long to wait for the peer's hello.

        Raises
        ------
        ProtocolError
            The peer is not a fabric peer of this version, or refuses.
        ChannelClosedError
            The peer closed the connection, or did not answer in time.
        OSError
            The connection broke (``ssl.SSLError`` is one).
        """
    def give_up(self, timeout_seconds):
        """Fail the handshake: it has taken longer than *timeout_seconds*."""
    def use(self, path: Path, devices=None):
        """Use one more path for large frames, in both directions.

        Parameters
        ----------
        path : dask_fabric.wire.path.Path
            Less preferred than the paths in use.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
    def send_paths(self, content):
        """Complete the negotiation, as the client: queue the PATHS record."""
    def send(self, header: bytes | memoryview, frames: list[Any]) -> int:
        """Send one message, without waiting for the network or the peer.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of contiguous buffers
            Frames above the inline limit are sent later, from their own memory, which must not
            change until then.

        Returns
        -------
        int
            Bytes of the message.
        """
    def check_limits(self, frame_count, header_bytes, nbytes):
        """Raise `MessageTooLargeError` for a message above the limits that the peer announced."""
    def has_room(self, limit_bytes: int) -> bool:
        """Whether at most *limit_bytes* are queued or in flight, so that a message may follow.

        Two sides that both write first must not block each other: it may be twice as much while the
        peer has sent something that nobody here reads.
        """
    def room(self, limit_bytes):
        """Give a future that ends when `has_room` may be true, or the channel has closed."""
    def receive_nowait(self) -> tuple[bytes | memoryview, list[memoryview]] | None:
        """Return the next message if it is here already.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            Header and frames.

        Raises
        ------
        ProtocolError
            The peer broke the protocol; the channel is closed.
        """
    def receive(self) -> Awaitable[Any]:
        """Wait for the next message.

        Returns
        -------
        awaitable
            Of header and frames, as from `receive_nowait`. After a cancellation the caller must
            abort the channel.

        Raises
        ------
        ChannelClosedError
            The channel is closed, and all messages received before were taken.
        """
    async def close(self, timeout_seconds: float):
        """Send the queue and the CLOSE record, wait until nothing is in flight, then close.

        Parameters
        ----------
        timeout_seconds : float
            Abort after this time without progress.
        """
    def warn(self, kind, text, *args): ...
    def left_bytes(self):
        """Bytes in flight or queued, less what a running job has sent."""
    def abort(self, error: BaseException | None = None):
        """Close at once. Queued data is lost, and a pending `receive` fails.

        Parameters
        ----------
        error : BaseException, optional
            The reason, raised by later calls.
        """
    def check_open(self):
        """Raise an error if the channel is closed.

        Raises
        ------
        ChannelClosedError, ProtocolError
        """
    def ended(self):
        """Whether either side has closed, even if received bytes are still unread."""
    def addresses(self):
        """The local and the peer's address as users see them, also in logs.

        Without `ends` and `name_ends` these are the socket addresses.
        """
    def tcp_info(self):
        """The kernel's ``struct tcp_info`` of the connection; empty if it is not TCP."""
    @property
    def peer(self):
        """The peer's hello, after `open`; shortened once the paths are chosen."""
    @property
    def server_side(self):
        """Whether the peer connected to this process."""
    @property
    def pending_bytes(self):
        """Bytes that are queued, and not yet accepted by the kernel."""
    @property
    def queued_bytes(self):
        """Bytes that are queued or in flight: the peer has not taken them."""
    @property
    def in_flight_bytes(self):
        """Bytes of frames on offer that the peer has not answered yet."""
    def statistics(self) -> dict[str, Any]:
        """The statistics of this channel.

        Returns
        -------
        dict
            Those of `Connection.statistics`, and counts of engine jobs by direction, and receives
            that waited because memory was short (``waits_for_memory``).
        """
    def figures(self):
        """The metrics of the stream, and of each chosen path; see `Connection.figures`."""

def warn_always(loop, kind, text, *args):
    """Log a warning. Comms use a rate-limited function instead: a peer causes these lines."""

"""A channel: messages over one connected socket, in one event loop.

Theory of operation
-------------------
The protocol is a `Connection` (`core`), which has no socket. The channel drives it: it watches the
socket, moves bytes between it and the core, starts transfers of frames and reports their ends, and
wakes the task that reads. After each call of the core it serves what that `wants`.

The loop itself reads and writes what is small, with the GIL held: a call that moves some KiB takes
microseconds, and after the GIL was released it may take 5 ms to get it back
(dask/distributed#6325). What is large is one job of native threads, which costs one wake-up of the
loop when all of it is there. Where the socket is inside TLS, the loop moves everything
(`transport`).

At the end (`_fail`) the order matters: jobs are stopped first; where frames are on offer, the
stream is ended visibly before their memory is freed, for the peer looks for that end after it has
read them; then the socket is closed, and at last whoever waits is woken.
"""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Final

from dask_fabric.config import Settings
from dask_fabric.engine.transport import Transport
from dask_fabric.wire.connection import Connection
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.metrics import Metrics
from dask_fabric.wire.path import Path

logger = logging.getLogger(__name__)

class Channel:
    """Messages over one connected socket.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop; every method is called in its thread.
    transport : Transport
        Of the socket; belongs to the channel from now on.
    handshake : dask_fabric.wire.handshake.Handshake
    settings : dask_fabric.config.Settings
    negotiator : dask_fabric.comm.channels.negotiator.Negotiator, optional
        Chooses the paths of large frames; without it they stay on the stream.

    Attributes
    ----------
    closed : bool
        Whether either side has closed, noticed without a read.
    error : Exception or None
        What ended the channel, where it was not a request of this side.
    choice : dask_fabric.paths.negotiation.Choice or None
        What was chosen, after `open`; a server may learn of more from the client's first record.
    local_sockname, peer_sockname : tuple or str
        As `socket.getsockname` and `socket.getpeername` gave them.
    ends : tuple of str or None
        The local and the peer's address, once they are settled.
    name_ends : callable or None
        Gives, for the channel, its local and its peer's address as users see them.
    on_closed : callable or None
        Called once, with the channel, when it is closed; it must not keep its owner alive.
    on_active : callable or None
        Called once, before the channel moves anything, and is None then until it is set again.

    Notes
    -----
    Messages that came before the end of the peer stay readable when `closed` is true.
    """

    loop: Final[Any]
    core: Final[Connection]
    transport: Final[Transport]
    choice: Any
    closed: Final[bool]
    error: Final[Any]
    on_closed: Any
    on_active: Any
    local_sockname: Final[Any]
    peer_sockname: Final[Any]
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
        """Exchange hellos with the peer. A channel that fails is closed.

        Parameters
        ----------
        timeout_seconds : float, optional
            How long to wait for the peer's.

        Raises
        ------
        ProtocolError
            The peer is no fabric peer of this version, or refuses.
        ChannelClosedError
            The peer closed the connection, or the time is over.
        OSError
            The connection broke (``ssl.SSLError`` is one).
        """
    def give_up(self, timeout_seconds):
        """End the handshake, which has taken so long."""
    def use(self, path: Path, devices=None):
        """Let large frames travel by one more path, in both directions.

        Parameters
        ----------
        path : dask_fabric.wire.path.Path
            Less preferred than those that are used already.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
    def tell_paths(self, content):
        """Complete the negotiation, as the client: with the next message, or soon."""
    def send(self, header: bytes | memoryview, frames: list[Any]) -> int:
        """Send one message, without waiting for the network or the peer.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of contiguous buffers
            Those above the inline limit are sent from their own memory, later; they must not
            change until then.

        Returns
        -------
        int
            Bytes of the message.
        """
    def check_limits(self, frame_count, header_bytes, nbytes):
        """Raise `MessageTooLargeError` for a message that the peer has said that it refuses."""
    def receive_nowait(self) -> tuple[bytes | memoryview, list[memoryview]] | None:
        """The next message, where it is here already.

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
            Of header and frames, as from `receive_nowait`. Who cancels it must abort the channel.

        Raises
        ------
        ChannelClosedError
            The channel is closed and every message that came before was received.
        """
    async def close(self, timeout_seconds: float):
        """Send what is queued and the close record, then close.

        Parameters
        ----------
        timeout_seconds : float
            The channel is aborted when the peer has taken nothing for so long.
        """
    def abort(self, error: BaseException | None = None):
        """Close at once; what is queued is lost, and a pending `receive` fails.

        Parameters
        ----------
        error : BaseException, optional
            Why, for the next who uses the channel.
        """
    def check_open(self):
        """Raise why the channel is closed, if it is.

        Raises
        ------
        ChannelClosedError, ProtocolError
        """
    def ended(self):
        """Whether either side has closed, also where much of what the peer sent is unread."""
    def addresses(self):
        """The local and the peer's address as users see them, also in logs.

        Without `ends` and `name_ends` they are the names of the sockets.
        """
    def tcp_info(self):
        """What the kernel says of the connection (``struct tcp_info``); empty if it is no TCP."""
    @property
    def peer(self):
        """What the peer said of itself (`dask_fabric.wire.hello.Hello`), after `open`."""
    @property
    def server_side(self):
        """Whether the peer has connected to this process, and not the other way round."""
    @property
    def pending_bytes(self):
        """Bytes that were sent here and that the kernel has not yet taken."""
    @property
    def in_flight_bytes(self):
        """Bytes of frames that are on offer and that the peer has not fetched yet."""
    @property
    def sends_devices(self):
        """Whether `send` takes frames of device memory now; else they are to be brought to host."""
    @property
    def receives_devices(self):
        """Whether the peer may offer frames of device memory; some may come to host memory yet."""
    @property
    def sends_by(self):
        """The path that large frames of host memory take now."""
    @property
    def stream(self):
        """What was counted of the stream (`dask_fabric.wire.metrics.Metrics`)."""
    def statistics(self) -> dict[str, Any]:
        """What this channel has moved.

        Returns
        -------
        dict
            Counts of messages, bytes and engine jobs by direction; ``pending_bytes`` the kernel has
            not taken and ``unacknowledged_bytes`` the peer has not fetched; ``fallbacks_*``,
            messages whose frames had to go by the stream instead. ``sends_by`` is the path that
            large frames of this side take now, and ``sends_devices`` tells whether those of device
            memory have one of their own. ``traffic`` has, for the stream and for each path that was
            chosen beside it, what `dask_fabric.wire.metrics.Metrics.as_dict` gives.
        """
    def figures(self) -> dict[str, Metrics]:
        """What was counted of the stream, and of each path that was chosen beside it.

        Returns
        -------
        dict of str to Metrics
            Copies. Messages, their sizes and their serialization count with the stream, which
            carries their headers.
        """

"""One end of a connection, without its socket.

Theory of operation
-------------------
The protocol is a receiver-driven rendezvous over an eager stream. Small frames follow their message
on the stream (eager). Large frames may be *offered* (rendezvous): the message names a path by which
the receiver *fetches* them, and their memory is under a *lease* until the receiver *acknowledges*
the message. If it cannot fetch, it *requests* the frames, and the sender writes them to the stream.

`Connection` does no I/O: it has no file descriptor and no thread, reads the clock for its metrics
only, and calls nothing but its paths. Its owner (`dask_fabric.engine.channel`) moves the bytes and
runs the transfers:

* The owner puts received bytes into `incoming` and takes messages by `next_message`. While no
  `receive` is pending, it calls `read_unawaited`: control records release our own frames, so they
  are processed anyway. Messages stay in the stream, which is the backpressure on the peer.
* `send`, `close` and answers queue bytes in `outgoing`. The owner writes them.
* After each call the owner serves the bits of `wants`.

A received message is OFFERED, FETCHING, REQUESTED or READY (`wire.inbox`). Messages are delivered
in order: one that still lacks frames waits in the `inbox`, with everything behind it. One message
at a time is fetched, and at most one is requested. Very many frames are fetched in windows, so
that memory is committed little by little.

A close waits until the peer has acknowledged all offers, or has closed itself. A CLOSE record may
be buffered behind messages that no one reads, so the connection looks ahead for it. `end` then
releases the leases, drops messages that can never become whole, and keeps whole ones readable.
"""

from typing import Any, Final

from dask_fabric.wire.inbox import Inbox
from dask_fabric.wire.message_reader import MessageReader
from dask_fabric.wire.metrics import Metrics
from dask_fabric.wire.outbox import Outbox
from dask_fabric.wire.path import Path, Transfer
from dask_fabric.wire.receive_buffer import ReceiveBuffer
from dask_fabric.wire.send_buffer import SendBuffer

class Connection:
    """The protocol of one end of a connection.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit, frame_count_limit : int
        Limits of one message of the peer; see `dask_fabric.wire.record_reader.RecordReader`.
    inline_bytes : int
        A message up to this size is copied when it is sent. Frames of larger ones are sent from
        their own memory.
    """

    local: Final[int]
    outcome: Final[int]
    wants: int
    reader: Final[MessageReader]
    incoming: Final[ReceiveBuffer]
    outgoing: Final[SendBuffer]
    inbox: Final[Inbox]
    outbox: Final[Outbox]
    metrics: Final[Metrics]
    paths: Final[list[Any]]

    def __init__(
        self,
        header_bytes_limit: int,
        message_bytes_limit: int,
        frame_count_limit: int,
        inline_bytes: int,
    ): ...
    def feed(self, data: bytes) -> int:
        """Store received bytes, as far as they fit into the current buffer.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        int
            The number of bytes stored. Call `next_message` before feeding the rest.
        """
    def take_outgoing(self, nbytes: int):
        """Remove and return up to *nbytes* from the front of the send buffer."""
    def end_transfer(self, transfer: Transfer, error: int = 0, is_stuck: bool = False):
        """Report the end of a transfer, with an errno if it failed.

        Parameters
        ----------
        transfer : Transfer
        error : int
        is_stuck : bool
            Whether its memory may still be written to.
        """
    def lose_stream(self):
        """Handle the end of the peer's stream; return the error that describes it."""
    def take_notices(self):
        """Remove and return the pending notices: (kind, subject, path) of each."""
    @property
    def remote(self):
        """The state of the peer's half (`dask_fabric.wire.states.Half`)."""
    def is_open(self) -> bool:
        """Whether both hellos were exchanged."""
    def is_busy(self) -> bool:
        """Whether bytes are queued or leases are open."""
    def discards(self) -> bool:
        """Whether messages are dropped unread: this side closes, and only awaits answers."""
    def is_in_message(self, is_awaited: bool) -> bool:
        """Whether the peer owes the rest of a message, or frames that were requested.

        Without a pending `receive`, or during a fetch, staged bytes may be whole messages: they do
        not count.
        """
    @property
    def sends_devices(self):
        """Whether `send` takes device frames now; otherwise stage them in host memory first."""
    @property
    def receives_devices(self):
        """Whether the peer may offer device frames; some may still arrive in host memory."""
    @property
    def sends_by(self):
        """The path that large frames of host memory take now."""
    def statistics(self) -> dict[str, Any]:
        """The counts of this connection.

        Returns
        -------
        dict
            Counts of messages and bytes. ``pending_bytes`` are queued, ``unacknowledged_bytes`` are
            in flight; ``fallbacks_*`` count messages whose frames were sent on the stream instead.
            ``sends_by`` is the path that large frames of this side take now; ``sends_devices`` is
            true if a path takes device frames.
            ``traffic`` maps the stream and each chosen path to its
            `dask_fabric.wire.metrics.Metrics.as_dict`.
        """
    def figures(self) -> dict[str, Metrics]:
        """The metrics of the stream, and of each chosen path.

        Returns
        -------
        dict of str to Metrics
            Copies. Messages, their sizes and serialization times count for the stream, which
            carries their headers.
        """
    def opened(self) -> Any:
        """Both hellos are exchanged: records follow, unless this side has closed meanwhile."""
    def expect_first(self, nbytes: int):
        """Accept only a header of up to *nbytes*, and no frames, as the peer's first message.

        Before that the peer is a stranger: nothing is fetched from it, nor stored for it.

        Parameters
        ----------
        nbytes : int
        """
    def use(self, path: Path, devices=None) -> Any:
        """Use one more path for large frames, in both directions.

        Parameters
        ----------
        path : Path
            Less preferred than the paths in use.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
    def end(self, outcome: int, is_violated: bool = False) -> Any:
        """End the connection: release all leases and drop messages that cannot become whole.

        Whole messages can still be taken.

        Parameters
        ----------
        outcome : int
        is_violated : bool
            Whether the peer broke the protocol: then everything unread is dropped too.
        """
    def drop_unready(self) -> Any:
        """Drop messages whose frames are lost, and everything behind them, to keep the order."""
    def send(self, header: bytes | memoryview, frames: list[Any]) -> int:
        """Queue one message.

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
    def close(self) -> Any:
        """Queue the CLOSE record. Only frames that the peer requests may follow it."""
    def next_message(self) -> Any:
        """Take the next message, if all its frames are here.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            Also None if frames must be fetched first (`WANT_FETCH`), and after a message was
            dropped (`discards`): no message behind a lost one is delivered.

        Raises
        ------
        ProtocolError, LimitError
        """
    def read_unawaited(self) -> Any:
        """Process control records without a pending `receive`, and look for the peer's CLOSE.

        When the peer closes, fetch ahead of the reader: it waits, for a limited time, until its
        frames are fetched.
        """
    def look_ahead(self) -> Any:
        """Ask for a fetch although no `receive` is pending."""
    def stop_offering(self, path: Path) -> bool:
        """Mark a path as broken: nothing more is offered by it, unless it recovers.

        Returns False if it was marked before.
        """
    def resume_offering(self, path: Path):
        """A broken path works again."""
    def next_transfer(self) -> Transfer:
        """Allocate memory for the next frames to fetch; None if there are none.

        The caller runs the transfer by `Path.fetch` and reports its end to `transfer_ended`.
        """

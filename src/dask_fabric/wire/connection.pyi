"""One end of a connection, without its socket.

Theory of operation
-------------------
The protocol is a rendezvous that the receiver drives, over an eager stream. Small frames follow
their message on the stream. Large ones may be *offered*: the message names a path by which the
receiver *fetches* them, and their memory is under a *lease* until it *acknowledges* the message. If
it cannot fetch, it *requests* the frames, which are then sent on the stream.

`Connection` has no file descriptor and no thread, looks at the clock for its metrics alone, and
calls nobody but the paths that it was given. Its owner (`dask_fabric.engine.channel`) moves the
bytes and runs the transfers:

* it puts received bytes into `incoming` and takes messages by `next_message`; what nobody reads
  stays in the stream, so that the peer's sending is limited by this side's reading. Answers about
  its own frames are processed also where nobody reads (`read_unawaited`);
* `send`, `close` and answers put bytes into `outgoing`, which the owner writes;
* after each call the bits of `wants` tell what else is to be done.

Messages are delivered in order. One that has frames to fetch waits in the `inbox`, and so does what
came behind it; one message at a time is fetched, and at most one is requested.
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
        What one message of the peer may claim; see `dask_fabric.wire.record_reader.RecordReader`.
    inline_bytes : int
        Up to this size a message that is sent is copied; larger frames are sent from their memory.
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
        """Put bytes that were received where they belong.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        int
            How many of them; the rest belongs elsewhere, after `next_message`.
        """
    def take_outgoing(self, nbytes: int):
        """Take the first of the bytes that are to be written; at most so many."""
    def end_transfer(self, transfer: Transfer, error: int = 0, is_stuck: bool = False):
        """Report the end of a transfer, with an errno if it failed.

        Parameters
        ----------
        transfer : Transfer
        error : int
        is_stuck : bool
            Whether something may still write to its memory.
        """
    def lose_stream(self):
        """The peer's end of the stream was read, or is lost; give what that means."""
    def take_notices(self):
        """Take what was noticed: (kind, subject, path) of each."""
    @property
    def remote(self):
        """The state of the peer's half (`dask_fabric.wire.states.Half`)."""
    def is_open(self) -> bool:
        """Whether both hellos were exchanged."""
    def is_busy(self) -> bool:
        """Whether something is still to leave, or is still needed by who fetches it."""
    def discards(self) -> bool:
        """Whether messages of the peer only stand before its answers about frames on offer."""
    def is_in_message(self, is_awaited: bool) -> bool:
        """Whether the peer has to send more of what it has begun, or was asked for.

        Where nobody awaits a message, or frames are being fetched, whole ones may be there too.
        """
    def opened(self) -> Any:
        """Both hellos were exchanged: records follow."""
    def use(self, path: Path, devices=None) -> Any:
        """Let large frames travel by one more path, in both directions.

        Parameters
        ----------
        path : Path
            Less preferred than those that are used already.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
    def end(self, outcome: int, is_violated: bool = False) -> Any:
        """The connection has ended: drop what cannot be of use any more.

        Messages that came before, with all their frames, can still be taken.

        Parameters
        ----------
        outcome : int
        is_violated : bool
            Whether the peer broke the protocol: then what is unread is behind that, and dropped.
        """
    def drop_unready(self) -> Any:
        """Drop messages that will never have their frames, and what came behind them."""
    def send(self, header: bytes | memoryview, frames: list[Any]) -> int:
        """Queue one message.

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
    def close(self) -> Any:
        """Queue the close record: nothing more is sent but frames that the peer requests."""
    def next_message(self) -> Any:
        """The next message that is whole and fetched.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            None also where frames are to be fetched first (`WANT_FETCH`), and where messages were
            dropped (`discards`): none is delivered from behind one that is lost.

        Raises
        ------
        ProtocolError, LimitError
        """
    def read_unawaited(self) -> Any:
        """Process what is not a message for a reader: answers, and the peer's close record.

        A peer that closes waits, not for long, until what it offered is fetched.
        """
    def look_ahead(self) -> Any:
        """Fetch for messages that nobody awaits yet."""
    def stop_offering(self, path: Path) -> bool:
        """The path is broken: the stream has to do, until this connection ends.

        False where that was known.
        """
    def next_transfer(self) -> Transfer:
        """The next frames to fetch, which have their memory now; None where there are none.

        The caller runs it by `Path.fetch` and reports its end to `transfer_ended`.
        """

"""Assembles messages from the records that arrive; larger frames are received in place.

Memory and time are committed in proportion to the bytes that have arrived, not to the sizes that
the peer claims: frames are allocated little by little, at most `TURN_FRAMES` per call.
"""

from collections.abc import Iterable
from typing import Any, Final

from dask_fabric.wire.frames import Control
from dask_fabric.wire.inbox import Inbox
from dask_fabric.wire.metrics import Metrics
from dask_fabric.wire.path import Path
from dask_fabric.wire.receive_buffer import ReceiveBuffer
from dask_fabric.wire.record_reader import RecordReader

class MessageReader:
    """Turns the bytes of a stream into messages and other records.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit, frame_count_limit : int
        As for `RecordReader`.

    Notes
    -----
    The owner writes received bytes to `ReceiveBuffer.room`, reports them by `received`, and calls
    `next_record`. While `has_more_work`, it calls that again without further bytes. Frames on offer
    get no memory here: the owner takes them (`take_offered`) and calls `place` before each fetch.
    """

    buffer: Final[ReceiveBuffer]
    records: Final[RecordReader]
    inbox: Final[Inbox]
    metrics: Final[Metrics]

    def __init__(
        self, header_bytes_limit: int, message_bytes_limit: int, frame_count_limit: int
    ): ...
    def __sizeof__(self):
        """Includes its own buffers, but not the frames received in place."""
    def open(self, paths: Iterable[Path] = (), devices=None):
        """Begin to read records; for tests, which have no connection.

        Parameters
        ----------
        paths : iterable of Path
            Those by which frames may be on offer.
        devices : object
            What makes memory for frames of devices: ``allocate(nbytes)`` gives a frame of device
            memory, or raises `MemoryError`; ``span_of(frame)`` gives its address first;
            ``stage(memory)`` makes a frame over host memory that belongs on a device.
        """
    def receive_data(
        self, data: bytes
    ) -> list[tuple[bytes | memoryview, list[memoryview]]] | Control:
        """Process received bytes, and return the records that they complete.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        list of (tuple of (bytes or memoryview, list of memoryview)) or Control
            Header and frames of each message.

        Raises
        ------
        ProtocolError, LimitError
            As `next_record`.
        """
    def place_offered(self, frames: list[Any]):
        """Allocate the offered frames of the last message.

        Parameters
        ----------
        frames : list
            The frames of that message, None for those on offer; these are replaced.
        """
    @property
    def message_count(self): ...
    def has_more_work(self) -> bool:
        """Whether `next_record` can continue without further bytes."""

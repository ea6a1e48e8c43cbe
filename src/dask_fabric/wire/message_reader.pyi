"""Putting messages together from the records that arrive, with larger frames received in place.

The memory and the time that a claim costs stay in proportion to the bytes that arrived: frames get
their memory little by little, and one call handles at most `TURN_FRAMES` of them.
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
    The owner puts bytes where `ReceiveBuffer.room` says and reports them to its `received`;
    `next_record` gives messages as they become whole. While `has_more_work`, the owner calls it
    again without waiting for bytes. Frames on offer get no memory here: the owner calls `place` for
    each before it fetches it (`take_offered`).
    """

    buffer: Final[ReceiveBuffer]
    records: Final[RecordReader]
    inbox: Final[Inbox]
    metrics: Final[Metrics]

    def __init__(
        self, header_bytes_limit: int, message_bytes_limit: int, frame_count_limit: int
    ): ...
    def __sizeof__(self):
        """With its own buffers, and without what is being received in place."""
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
        """Take bytes that arrived, and give the records that they complete.

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
        """Give memory to the frames on offer of the message that was given last.

        Parameters
        ----------
        frames : list
            Of that message; None where a frame is on offer.
        """
    @property
    def message_count(self): ...
    def has_more_work(self) -> bool:
        """Whether `next_record` can go on without further bytes."""

"""One direction of a stream, and an independent reader of the records that it carries."""

from __future__ import annotations

import struct

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE, REQUEST, FRAMES, PATHS = range(1, 8)

# With more unread bytes than this, a reader cannot see the orderly end behind them without reading:
# they may still be in the sender's kernel.
HIDING_BYTES = 100_000


class Violation(AssertionError):
    """Something that must never happen has happened."""


class Transcript:
    """Checks the records that one node sends, by docs/wire-protocol.md alone.

    Attributes
    ----------
    other : Transcript
        That of the other direction.
    offers : dict of int to list of int
        The sizes of the frames on offer, by the number of their message.
    answered : set of int
        The messages of the other direction that were answered.
    """

    def __init__(self) -> None:
        self.other = self
        self.head = bytearray()
        self.left_bytes = 0  # of the current record's body
        self.kind = 0  # of that record; 0 between two records
        self.message_count = 0
        self.offers: dict[int, list[int]] = {}
        self.answered: set[int] = set()
        self.requested: int | None = None  # the message whose frames the other side must send
        self.has_closed = self.has_failed = False

    def is_between_records(self) -> bool:
        return self.kind == 0 and not self.head

    def feed(self, data: bytes) -> None:
        at, end = 0, len(data)
        while at < end:
            if self.kind:
                step = min(self.left_bytes, end - at)
                self.left_bytes -= step
                at += step
            else:
                if self.has_failed:
                    raise Violation("bytes follow an ERROR record")
                step = self._head_bytes() - len(self.head)
                self.head += data[at : at + step]
                at += step
                if len(self.head) < PREFIX.size or len(self.head) < self._head_bytes():
                    continue
                self._begin()
            if self.left_bytes == 0:
                self._end()

    def _head_bytes(self) -> int:
        """Give the bytes of prefix and table, as far as they are known."""
        if len(self.head) < PREFIX.size:
            return PREFIX.size
        return PREFIX.size + ENTRY.size * PREFIX.unpack_from(self.head)[3]

    def _begin(self) -> None:
        kind, flags, reserved, _, header_bytes, sequence = PREFIX.unpack_from(self.head)
        entries = list(ENTRY.iter_unpack(self.head[PREFIX.size :]))
        self.head.clear()
        self.kind = kind
        self.left_bytes = header_bytes
        for nbytes, path, _, _, descriptor_bytes in entries:
            self.left_bytes += descriptor_bytes + (0 if path else nbytes)
        if flags or reserved or any(entry[3] for entry in entries):
            raise Violation("reserved bits are set")
        if self.has_closed and kind != FRAMES:
            raise Violation(f"a record of kind {kind} follows CLOSE")
        offered = [entry[0] for entry in entries if entry[1]]
        if kind == MESSAGE:
            self._message(sequence, offered)
        elif kind in (ACKNOWLEDGE, REQUEST):
            self._answer(kind, sequence)
        elif kind == FRAMES:
            self._frames(sequence, entries, offered)
        elif kind == CLOSE:
            self.has_closed = True
        elif kind == ERROR:
            self.has_failed = True
        elif kind != PATHS:
            raise Violation(f"a record of kind {kind}")
        if kind not in (MESSAGE, FRAMES) and entries:
            raise Violation(f"a record of kind {kind} has frames")
        if kind not in (MESSAGE, ERROR, PATHS) and header_bytes:
            raise Violation(f"a record of kind {kind} has a header")

    def _message(self, sequence: int, offered: list[int]) -> None:
        if sequence != self.message_count:
            raise Violation(f"message {sequence} was sent instead of {self.message_count}")
        self.message_count += 1
        if offered:
            if min(offered) < 65536:
                raise Violation("a frame on offer is too small")
            self.offers[sequence] = offered

    def _answer(self, kind: int, sequence: int) -> None:
        if sequence not in self.other.offers or sequence in self.answered:
            raise Violation(f"an answer to message {sequence}, which expects none")
        self.answered.add(sequence)
        if kind == REQUEST:
            if self.requested is not None:
                raise Violation("two requests are open")
            self.requested = sequence

    def _frames(self, sequence: int, entries: list, offered: list[int]) -> None:
        if self.other.requested != sequence:
            raise Violation(f"frames of message {sequence} were sent without a request")
        if offered or [entry[0] for entry in entries] != self.offers[sequence]:
            raise Violation("the frames sent are not those that were on offer")

    def _end(self) -> None:
        if self.kind == FRAMES:
            self.other.requested = None
        self.kind = 0


class Wire:
    """One direction of a stream: bytes that were sent, but not read yet.

    Attributes
    ----------
    capacity : int
        How many unread bytes it can hold.
    is_blocked : bool
        Whether it accepts no bytes at present.
    is_ended : bool
        Whether the sender has closed it; the reader sees the end after the bytes.
    is_reset : bool
        Whether it ended by a reset: unread bytes are lost.
    is_broken : bool
        Whether the reader has closed it: writing fails.
    """

    def __init__(self, capacity: int) -> None:
        self.queue = bytearray()
        self.capacity = capacity
        self.transcript = Transcript()
        self.is_blocked = self.is_ended = self.is_reset = self.is_broken = False
        self.is_lossy = False  # bytes were lost, unknown to the sender
        self.is_due = False  # a delivery is scheduled
        self.reader = None

    def room(self) -> int:
        return 0 if self.is_blocked else max(0, self.capacity - len(self.queue))

    def put(self, data: bytes) -> None:
        if self.is_ended:
            raise Violation("bytes were sent after the end of the stream")
        self.transcript.feed(data)
        self.queue += data

    def peek(self, nbytes: int) -> bytes:
        with memoryview(self.queue) as view:
            return bytes(view[:nbytes])

    def drop(self, nbytes: int) -> None:
        """Remove the first bytes, which were read."""
        del self.queue[:nbytes]

    def end(self, at_once: bool) -> None:
        self.is_ended = True
        if at_once and not self.is_reset:
            self.is_reset = True
            self.is_lossy = True
            self.queue.clear()

    def seems_ended(self) -> bool:
        """Whether a reader sees the end without reading."""
        return self.is_reset or (self.is_ended and len(self.queue) <= HIDING_BYTES)

    def has_news(self) -> bool:
        return self.is_ended or bool(self.queue)

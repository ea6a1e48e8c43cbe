"""One direction of a stream, and an independent reader of the records that it carries."""

from __future__ import annotations

import struct

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE, REQUEST, FRAMES, PATHS = range(1, 8)

# So many bytes behind an orderly end hide it from who looks for it without reading: they may still
# be with the sender's kernel.
HIDING_BYTES = 100_000


class Violation(AssertionError):
    """Something that must never happen has happened."""


class Transcript:
    """Checks what one node sends, by docs/wire-protocol.md alone.

    Attributes
    ----------
    other : Transcript
        Of the other direction.
    offers : dict of int to list of int
        By the number of the message, the sizes of the frames that it has on offer.
    answered : set of int
        The messages of the other direction that were answered.
    """

    def __init__(self) -> None:
        self.other = self
        self.head = bytearray()
        self.left_bytes = 0  # of the body of the record that has begun
        self.kind = 0  # of that record; 0 between two records
        self.message_count = 0
        self.offers: dict[int, list[int]] = {}
        self.answered: set[int] = set()
        self.requested: int | None = None  # whose frames the other side owes to this one
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
        """Bytes of prefix and table, as far as is known."""
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
            raise Violation(f"message {sequence} is sent where {self.message_count} is due")
        self.message_count += 1
        if offered:
            if min(offered) < 65536:
                raise Violation("a frame on offer is too small")
            self.offers[sequence] = offered

    def _answer(self, kind: int, sequence: int) -> None:
        if sequence not in self.other.offers or sequence in self.answered:
            raise Violation(f"message {sequence} is answered, which awaits no answer")
        self.answered.add(sequence)
        if kind == REQUEST:
            if self.requested is not None:
                raise Violation("two requests are open")
            self.requested = sequence

    def _frames(self, sequence: int, entries: list, offered: list[int]) -> None:
        if self.other.requested != sequence:
            raise Violation(f"frames of message {sequence} are sent, which were not requested")
        if offered or [entry[0] for entry in entries] != self.offers[sequence]:
            raise Violation("other frames are sent than were on offer")

    def _end(self) -> None:
        if self.kind == FRAMES:
            self.other.requested = None
        self.kind = 0


class Wire:
    """One direction of a stream: bytes that were sent and not read.

    Attributes
    ----------
    capacity : int
        Bytes that it takes ahead of the reader.
    is_blocked : bool
        Whether it takes none just now.
    is_ended : bool
        Whether the sender's end of it is closed; the end is behind the bytes.
    is_reset : bool
        Whether it ended at once: what was not read is lost.
    is_broken : bool
        Whether the reader's end is closed: writing fails.
    """

    def __init__(self, capacity: int) -> None:
        self.queue = bytearray()
        self.capacity = capacity
        self.transcript = Transcript()
        self.is_blocked = self.is_ended = self.is_reset = self.is_broken = False
        self.is_lossy = False  # bytes were lost that the sender believes to be delivered
        self.is_due = False  # a delivery is among the events to come
        self.reader = None

    def room(self) -> int:
        return 0 if self.is_blocked else max(0, self.capacity - len(self.queue))

    def put(self, data: bytes) -> None:
        if self.is_ended:
            raise Violation("bytes are sent behind the end of the stream")
        self.transcript.feed(data)
        self.queue += data

    def peek(self, nbytes: int) -> bytes:
        with memoryview(self.queue) as view:
            return bytes(view[:nbytes])

    def drop(self, nbytes: int) -> None:
        """The first bytes were read."""
        del self.queue[:nbytes]

    def end(self, at_once: bool) -> None:
        self.is_ended = True
        if at_once and not self.is_reset:
            self.is_reset = True
            self.is_lossy = True
            self.queue.clear()

    def seems_ended(self) -> bool:
        """Whether a reader that looks, without reading, sees the end."""
        return self.is_reset or (self.is_ended and len(self.queue) <= HIDING_BYTES)

    def has_news(self) -> bool:
        return self.is_ended or bool(self.queue)

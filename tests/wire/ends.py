"""Two ends of a connection without a socket: a test moves every byte and every frame itself."""

from __future__ import annotations

import struct

from dask_fabric.paths.python_path import PythonPath
from dask_fabric.wire.connection import Connection

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE, REQUEST, FRAMES, PATHS = range(1, 8)
WANT_FETCH, WANT_ANSWER, WANT_LOOK, WANT_ATTENTION, WANT_END = 1, 2, 4, 8, 16
NOTICE_PATHS, NOTICE_FELL_BACK, NOTICE_BROKEN = 0, 1, 2
GREETING, OPEN, CLOSING, DONE = range(4)
CLOSED_HERE, FAILED = 1, 2

PATH_NUMBER = 16
TOKEN = struct.Struct("<Q")
LEAST_BYTES = 65536  # of a frame on offer
INLINE_BYTES = 1000
MIB = 1 << 20


def record(kind, sequence=0, content=b"", sizes=(), flags=0, reserved=0):
    """Make a record as in docs/wire-protocol.md; its frames follow on the stream."""
    table = b"".join(ENTRY.pack(nbytes, 0, 0, 0, 0) for nbytes in sizes)
    head = PREFIX.pack(kind, flags, reserved, len(sizes), len(content), sequence)
    return head + table + content


def offer(sequence, sizes, path=PATH_NUMBER):
    """Make a message whose frames are all on offer."""
    table = b"".join(ENTRY.pack(nbytes, path, 0, 0, TOKEN.size) for nbytes in sizes)
    tokens = b"".join(map(TOKEN.pack, range(len(sizes))))
    return PREFIX.pack(MESSAGE, 0, 0, len(sizes), 0, sequence) + table + tokens


def kinds_of(data):
    """The kinds of the whole records in some bytes."""
    kinds, at = [], 0
    while at < len(data):
        kind, _, _, count, header_bytes, _ = PREFIX.unpack_from(data, at)
        entries = ENTRY.iter_unpack(data[at + PREFIX.size : at + PREFIX.size + count * ENTRY.size])
        at += PREFIX.size + count * ENTRY.size + header_bytes
        for nbytes, path, _, _, descriptor_bytes in entries:
            at += descriptor_bytes if path else nbytes
        kinds.append(kind)
    assert at == len(data)
    return kinds


class TablePath(PythonPath):
    """A path whose frames are in a table, by token."""

    def __init__(self, number=PATH_NUMBER, least_bytes=LEAST_BYTES):
        super().__init__(None, f"table{number}", number, TOKEN.size, least_bytes)
        self.offered = {}
        self.released = []
        self.fails = False

    def describe_frame(self, memory):
        if self.fails:
            raise OSError("this frame cannot be offered")
        token = len(self.offered)
        self.offered[token] = memory
        return TOKEN.pack(token)

    def release_frame(self, descriptor):
        self.released.append(*TOKEN.unpack(descriptor))


class End:
    """One end, after the handshake."""

    def __init__(self, paths=None, limit_bytes=1 << 30):
        self.core = Connection(limit_bytes, limit_bytes, 100_000, INLINE_BYTES)
        self.core.opened()
        self.paths = [TablePath()] if paths is None else paths
        self.path = self.paths[0] if self.paths else None
        for path in self.paths:
            self.core.use(path)

    def send(self, header=b"", frames=()):
        return self.core.send(header, list(frames))

    def take(self, nbytes=1 << 40):
        return self.core.take_outgoing(nbytes)

    def receive(self, data):
        """Receive bytes, and give the messages that are complete then."""
        messages = []
        while True:
            data = data[self.core.feed(data) :]
            messages += self.messages()
            if not data:
                return messages

    def messages(self):
        found = []
        while (message := self.core.next_message()) is not None or self.core.reader.has_more_work():
            if message is not None:
                found.append(message)
        return found

    def store(self, data):
        """Receive bytes while no reader waits."""
        while data:
            data = data[self.core.feed(data) :]
            self.core.read_unawaited()

    def fetch(self, source, transfer=None):
        """Fetch the next frames, or those of *transfer*; give the transfer."""
        transfer = transfer or self.core.next_transfer()
        for _, number, descriptor, memory in transfer.frames.views():
            (path,) = (path for path in source.paths if path.number == number)
            memory[:] = path.offered[TOKEN.unpack_from(descriptor)[0]]
        self.core.end_transfer(transfer)
        return transfer


def contents(messages):
    return [(bytes(header), [bytes(frame) for frame in frames]) for header, frames in messages]

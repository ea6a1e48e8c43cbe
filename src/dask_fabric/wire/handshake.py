"""The handshake of the fabric protocol, without I/O: bytes in, bytes out.

The specification is ``docs/wire-protocol.md``. Received bytes are untrusted: their number is
limited before they are stored, and nothing in them is unpickled or executed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from dask_fabric.errors import (
    ForeignProtocolError,
    LimitError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
)
from dask_fabric.wire.foreign import MAGIC, PREAMBLE_BYTES, raise_if_foreign, unknown
from dask_fabric.wire.hello import (
    HELLO_BYTES_LIMIT,
    MAJOR_VERSION,
    MINOR_VERSION,
    PREAMBLE,
    TEXT_BYTES_LIMIT,
    Hello,
    decoded,
)
from dask_fabric.wire.records import error_record
from dask_fabric.wire.text import one_line

_VERSION = MAJOR_VERSION, MINOR_VERSION
_NOTHING = bytearray()


class State(str, enum.Enum):
    """The states of a handshake."""

    SILENT = "our hello is not sent yet"
    PREAMBLE = "waiting for the peer's preamble"
    HELLO = "waiting for the peer's hello"
    ANSWER = "the peer's hello was good, ours is not sent yet"
    DONE = "both hellos were exchanged"
    FAILED = "an error ended it"


class Event(str, enum.Enum):
    """The events of a handshake."""

    SEND = "our hello is taken for sending"
    BYTES = "bytes arrived"
    PREAMBLE = "the peer's preamble is whole and good"
    HELLO = "the peer's hello is whole and good"
    FAILURE = "the peer broke the protocol, refused, was refused, or closed"


_RECEIVING = {
    (State.PREAMBLE, Event.BYTES): State.PREAMBLE,
    (State.PREAMBLE, Event.PREAMBLE): State.HELLO,
    (State.PREAMBLE, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.BYTES): State.HELLO,
    (State.HELLO, Event.FAILURE): State.FAILED,
    (State.DONE, Event.BYTES): State.DONE,
}
CLIENT_TRANSITIONS = {
    **_RECEIVING,
    (State.SILENT, Event.SEND): State.PREAMBLE,
    (State.SILENT, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.HELLO): State.DONE,
}
SERVER_TRANSITIONS = {
    **_RECEIVING,
    (State.HELLO, Event.HELLO): State.ANSWER,
    (State.ANSWER, Event.BYTES): State.ANSWER,
    (State.ANSWER, Event.SEND): State.DONE,
    (State.ANSWER, Event.FAILURE): State.FAILED,
}


class Handshake:
    """One side of the exchange of hellos.

    Parameters
    ----------
    hello : Hello
        This side's hello.
    server_side : bool
        Whether this side accepted the connection.
    refuse : callable, optional
        Called with the peer's valid `Hello`; returns the reason to refuse the peer, or "".
    answer : callable, optional
        For a server: called with the client's valid `Hello`; returns the hello to send in place of
        *hello*.

    Attributes
    ----------
    hello : Hello
        This side's hello, as it is or was sent.
    server_side : bool
    state : State
    peer : Hello or None
        The peer's hello, once it has arrived and is valid.
    version : tuple of int or None
        Major and minor version that both sides speak, once the peer's preamble has arrived.
    """

    def __init__(
        self,
        hello: Hello,
        server_side: bool,
        refuse: Callable[[Hello], str | None] | None = None,
        answer: Callable[[Hello], Hello] | None = None,
    ) -> None:
        self.hello = hello
        self.peer: Hello | None = None
        self.version: tuple[int, int] | None = None
        self.state = State.PREAMBLE if server_side else State.SILENT
        self.server_side = server_side
        self._transitions = SERVER_TRANSITIONS if server_side else CLIENT_TRANSITIONS
        self._refuse = refuse
        self._answer = answer
        self._buffer = bytearray()
        self._wanted_bytes = PREAMBLE_BYTES

    @property
    def done(self) -> bool:
        """Whether the peer's hello is valid; a server must still send `data_to_send` then."""
        return self.peer is not None

    def data_to_send(self) -> bytes:
        """Return this side's hello, once, when it is its turn to send; else b""."""
        if self.state not in (State.SILENT, State.ANSWER):
            return b""
        self._advance(Event.SEND)
        return self.hello.encoded

    def receive(self, data: bytes | bytearray | memoryview) -> int:
        """Process received bytes.

        Returns
        -------
        int
            How many bytes of *data* were consumed; the rest belongs to the records after the
            peer's hello. At most ``PREAMBLE_BYTES + HELLO_BYTES_LIMIT`` are ever consumed.

        Raises
        ------
        ProtocolError
            Or a subclass; its ``reply`` is to be sent before closing.
        RuntimeError
            The handshake is in a state that does not accept bytes.
        """
        self._advance(Event.BYTES)
        view = memoryview(data).cast("B")
        used_bytes = 0
        try:
            while used_bytes < len(view) and not self.done:
                part = view[used_bytes : used_bytes + self._wanted_bytes - len(self._buffer)]
                self._buffer += part
                used_bytes += len(part)
                self._read()
        except ProtocolError as error:
            self._fail(error)
            raise
        return used_bytes

    def receive_eof(self) -> None:
        """Raise the error for a peer that closed before the handshake was done.

        Raises
        ------
        ProtocolError
            Always, unless the handshake is over already (`RuntimeError`).
        """
        state, start = self.state, bytes(self._buffer)
        self._advance(Event.FAILURE)
        if state is State.PREAMBLE and not MAGIC.startswith(start[: len(MAGIC)]):
            raise unknown(start, self.hello.scheme, self.server_side)
        peer = "client" if self.server_side else "server"
        if start or self.version:
            raise ProtocolError(f"the {peer} closed the connection in the middle of the handshake")
        advice = "" if self.server_side else " (is the address right? does it require TLS?)"
        raise ProtocolError(f"the {peer} closed the connection before its hello{advice}")

    def _advance(self, event: Event) -> None:
        try:
            self.state = self._transitions[self.state, event]
        except KeyError:
            raise RuntimeError(f"{event.name} is not allowed in {self.state.name}") from None

    def _read(self) -> None:
        whole = len(self._buffer) == self._wanted_bytes
        if self.state is State.PREAMBLE:
            if not whole or not self._buffer.startswith(MAGIC):
                raise_if_foreign(bytes(self._buffer), self.hello.scheme, self.server_side)
            if whole:
                self._read_preamble()
        elif whole:
            self._read_hello()

    def _read_preamble(self) -> None:
        _, major, minor, _, hello_bytes = PREAMBLE.unpack(self._buffer)
        if major != MAJOR_VERSION:
            raise VersionMismatchError(
                f"the peer speaks version {major} of the fabric protocol and this side version "
                f"{MAJOR_VERSION}: install the same release of dask-fabric on both sides"
            )
        if not 0 < hello_bytes <= HELLO_BYTES_LIMIT:
            raise LimitError(
                f"the peer announced a hello of {hello_bytes} bytes; 1 to {HELLO_BYTES_LIMIT} are "
                "allowed"
            )
        self.version = _VERSION if minor >= MINOR_VERSION else (major, minor)
        self._buffer.clear()
        self._wanted_bytes = hello_bytes
        self._advance(Event.PREAMBLE)

    def _read_hello(self) -> None:
        peer = decoded(bytes(self._buffer))
        if peer.error:
            side = "client" if self.server_side else "server"
            raise RefusedError(f"the {side} refused the connection: {one_line(peer.error)}")
        reason = self._refuse(peer) if self._refuse else None
        if reason:
            raise RefusedError(reason, self._refusal(reason))
        if self._answer:
            self.hello = self._answer(peer)
        # Free what these closures hold: it is not needed any more, and connections are many.
        self._refuse = self._answer = None
        self._buffer = _NOTHING
        self.peer = peer
        self._advance(Event.HELLO)

    def _fail(self, error: ProtocolError) -> None:
        replied = isinstance(error, (ForeignProtocolError, RefusedError))
        # A client cannot know what a server of another version would understand.
        if not replied and (self.server_side or self.version):
            error.reply = self._refusal(str(error))
        self._advance(Event.FAILURE)

    def _refusal(self, reason: str) -> bytes:
        text = reason.encode()[:TEXT_BYTES_LIMIT].decode(errors="ignore")
        if self.server_side:
            return Hello(scheme=self.hello.scheme, error=text).encode()
        return error_record(text)  # the server has our hello already, and reads records now

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
from dask_fabric.wire.authentication import PLAIN, Exchange, Keys, is_proof
from dask_fabric.wire.foreign import MAGIC, PREAMBLE_BYTES, raise_if_foreign, unknown
from dask_fabric.wire.hello import (
    HELLO_BYTES_LIMIT,
    MAJOR_VERSION,
    MINOR_VERSION,
    PREAMBLE,
    TEXT_BYTES_LIMIT,
    Hello,
    decoded,
    unpack_map,
)
from dask_fabric.wire.records import error_record
from dask_fabric.wire.text import one_line

_VERSION = MAJOR_VERSION, MINOR_VERSION
_NOTHING = bytearray()
_HEAD_BYTES = 12  # of a preamble, before the size of what follows
_UNKEYED = (
    "this client has a key, and so requires one of the server, which has none: give the server's "
    "process the same key file, see `dask fabric key --help`"
)


class State(str, enum.Enum):
    """The states of a handshake."""

    SILENT = "our hello is not sent yet"
    PREAMBLE = "waiting for the peer's preamble"
    HELLO = "waiting for the peer's hello, or for its proof that it has the key"
    PROVE = "our challenge, or our proof, is not sent yet"
    ANSWER = "the peer's hello was good, ours is not sent yet"
    DONE = "both hellos were exchanged"
    FAILED = "an error ended it"


class Event(str, enum.Enum):
    """The events of a handshake."""

    SEND = "our hello is taken for sending"
    BYTES = "bytes arrived"
    PREAMBLE = "the peer's preamble is whole and good"
    CHALLENGE = "a client's hello or a server's challenge is good: our proof is next"
    UNPROVEN = "a server's hello is whole, and its proof follows"
    HELLO = "the peer's hello is whole and good, and proved if it must be"
    FAILURE = "the peer broke the protocol, refused, was refused, or closed"


_RECEIVING = {
    (State.PREAMBLE, Event.BYTES): State.PREAMBLE,
    (State.PREAMBLE, Event.PREAMBLE): State.HELLO,
    (State.PREAMBLE, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.BYTES): State.HELLO,
    (State.HELLO, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.CHALLENGE): State.PROVE,
    (State.PROVE, Event.SEND): State.PREAMBLE,
    (State.PROVE, Event.FAILURE): State.FAILED,
    (State.DONE, Event.BYTES): State.DONE,
}
CLIENT_TRANSITIONS = {
    **_RECEIVING,
    (State.SILENT, Event.SEND): State.PREAMBLE,
    (State.SILENT, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.UNPROVEN): State.PREAMBLE,
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
    keys : Keys, optional
        The keys of this process. Then the peer must have one of them, and *hello* says so.
    inside : str
        `PLAIN`, `TLS` or `KEY_TLS`, of `dask_fabric.wire.authentication`: the proofs say it.

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
        keys: Keys | None = None,
        inside: str = PLAIN,
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
        self._exchange = None if keys is None else Exchange(keys, inside)
        self._read_message = self._read_hello if keys is None else self._read_first
        self._preamble = b""
        self._to_send = b""  # in the state PROVE
        self._awaits_proof = False  # the server, which then reads no records yet
        # The hello of a peer; of a server also the message.
        self._unproven: tuple[bytes, Hello] | None = None

    @property
    def done(self) -> bool:
        """Whether the peer's hello is valid; a server must still send `data_to_send` then."""
        return self.peer is not None

    def data_to_send(self) -> bytes:
        """Return what this side has to send now, once: its hello, or a proof; else b""."""
        state = self.state
        if state not in (State.SILENT, State.PROVE, State.ANSWER):
            return b""
        self._advance(Event.SEND)
        if state is State.PROVE:
            return self._to_send
        if self._exchange is None:
            return self.hello.encoded
        if state is State.SILENT:
            return self._exchange.greet(self.hello)
        sealed = self._exchange.seal(self.hello.encoded)
        self._exchange = None  # it holds whole messages, and is not needed any more
        return sealed

    def receive(self, data: bytes | bytearray | memoryview) -> int:
        """Process received bytes.

        Returns
        -------
        int
            How many bytes of *data* were consumed; the rest belongs to the records after the
            peer's hello. At most ``PREAMBLE_BYTES + HELLO_BYTES_LIMIT`` are ever consumed, with
            keys at most three times as many. While there is something to send, nothing is.

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
            while used_bytes < len(view) and not self.done and self.state is not State.PROVE:
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
            body = bytes(self._buffer)
            self._buffer = bytearray()
            self._wanted_bytes = PREAMBLE_BYTES
            self._read_message(body)

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
        # Proofs do not cover their own preambles.
        if self._preamble and self._preamble[:_HEAD_BYTES] != self._buffer[:_HEAD_BYTES]:
            raise ProtocolError("the preambles of the peer's messages have different versions")
        self.version = _VERSION if minor >= MINOR_VERSION else (major, minor)
        self._preamble = bytes(self._buffer)
        self._buffer.clear()
        self._wanted_bytes = hello_bytes
        self._advance(Event.PREAMBLE)

    def _read_hello(self, body: bytes) -> None:
        """Read the peer's hello where no key is needed."""
        self._accept(self._decode(body))

    def _decode(self, body: bytes) -> Hello:
        peer = decoded(body)
        if peer.error:
            side = "client" if self.server_side else "server"
            raise RefusedError(f"the {side} refused the connection: {one_line(peer.error)}")
        return peer

    def _accept(self, peer: Hello) -> None:
        """Take a hello that is good, and proved if it must be."""
        reason = self._refuse(peer) if self._refuse else None
        if reason:
            raise self._refused(reason)
        if self._answer:
            self.hello = self._answer(peer)
        # Free what these closures hold: it is not needed any more, and connections are many.
        self._refuse = self._answer = None
        self._read_message = self._read_nothing
        self._unproven = None
        self._to_send = b""
        if not self.server_side:
            self._exchange = None
        self._buffer = _NOTHING
        self.peer = peer
        self._advance(Event.HELLO)

    @staticmethod
    def _read_nothing(body: bytes) -> None:
        """Hold no reference to this handshake: it is over."""

    def _refused(self, reason: str) -> RefusedError:
        return RefusedError(reason, self._refusal(reason))

    # ---- with a key

    def _read_first(self, body: bytes) -> None:
        """Read a client's hello, or a server's challenge."""
        assert self._exchange is not None
        if self.server_side:
            client = self._decode(body)
            try:
                self._to_send = self._exchange.challenge(self._preamble + body, client)
            except RefusedError as error:
                raise self._refused(str(error)) from None
            self._unproven = b"", client  # the message is in the exchange
            self._read_message = self._read_client_proof
        else:
            content = unpack_map(body, "the server's challenge")
            if "challenge" not in content:
                self._decode(body)  # it may be a refusal
                raise self._refused(_UNKEYED)
            self._awaits_proof = True
            self._to_send = self._exchange.take_challenge(self._preamble + body, content)
            self._awaits_proof = False
            self._read_message = self._read_server_hello
        self._advance(Event.CHALLENGE)

    def _read_client_proof(self, body: bytes) -> None:
        assert self._exchange is not None and self._unproven is not None
        if not is_proof(body):
            self._decode(body)  # it may be a refusal
        self._exchange.check_client(body)
        self._accept(self._unproven[1])

    def _read_server_hello(self, body: bytes) -> None:
        self._unproven = self._preamble + body, self._decode(body)
        self._read_message = self._read_server_proof
        self._advance(Event.UNPROVEN)

    def _read_server_proof(self, body: bytes) -> None:
        assert self._exchange is not None and self._unproven is not None
        message, server = self._unproven
        self._exchange.check_server(message, body)
        self._accept(server)

    def _fail(self, error: ProtocolError) -> None:
        replied = isinstance(error, (ForeignProtocolError, RefusedError))
        # A client cannot know what a server of another version would understand.
        if not replied and (self.server_side or self.version):
            error.reply = self._refusal(str(error))
        self._advance(Event.FAILURE)

    def _refusal(self, reason: str) -> bytes:
        text = reason.encode()[:TEXT_BYTES_LIMIT].decode(errors="ignore")
        if self.server_side or self._awaits_proof:
            return Hello(scheme=self.hello.scheme, error=text).encode()
        return error_record(text)  # the server has our hello already, and reads records now

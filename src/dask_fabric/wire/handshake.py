"""The handshake of the fabric protocol, without I/O: bytes in, bytes out.

The specification is ``docs/wire-protocol.md``. Received bytes are untrusted: their number is
limited before they are stored, and nothing in them is unpickled or executed.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from dask_fabric.errors import (
    ForeignProtocolError,
    LimitError,
    ProtocolError,
    RefusedError,
    UnavailableError,
    VersionMismatchError,
)
from dask_fabric.wire.authentication import PLAIN, Exchange, Method, Work
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


class State(str, enum.Enum):
    """The states of a handshake."""

    SILENT = "our hello is not sent yet"
    PREAMBLE = "waiting for the peer's preamble"
    HELLO = "waiting for the peer's hello, or for its proof"
    WORK = "a proof is being made or checked elsewhere, since that may take time"
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
    WORK = "a proof is to be made or checked elsewhere"
    WORKED = "that is done"
    HELLO = "the peer's hello is whole and good, and proved if it must be"
    FAILURE = "the peer broke the protocol, refused, was refused, or closed"


_READING = (State.PREAMBLE, State.HELLO)
_RECEIVING = {
    (State.PREAMBLE, Event.BYTES): State.PREAMBLE,
    (State.PREAMBLE, Event.PREAMBLE): State.HELLO,
    (State.PREAMBLE, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.BYTES): State.HELLO,
    (State.HELLO, Event.FAILURE): State.FAILED,
    (State.HELLO, Event.WORK): State.WORK,
    (State.WORK, Event.BYTES): State.WORK,
    (State.WORK, Event.WORKED): State.HELLO,
    (State.WORK, Event.FAILURE): State.FAILED,
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


class Ended:
    """What is kept of a handshake that is over: connections are many.

    Attributes
    ----------
    peer : Hello
        The peer's hello.
    server_side : bool
    """

    __slots__ = ("peer", "server_side")

    done = True
    work = None

    def __init__(self, peer: Hello, server_side: bool) -> None:
        self.peer, self.server_side = peer, server_side


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
    method : Method, optional
        How this process proves who it is. Then the peer must do so too, and *hello* says so.
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
    work : callable or None
        In the state WORK: gives an awaitable, whose result `go_on` wants.
    """

    def __init__(
        self,
        hello: Hello,
        server_side: bool,
        refuse: Callable[[Hello], str | None] | None = None,
        answer: Callable[[Hello], Hello] | None = None,
        method: Method | None = None,
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
        self._method = method
        self._exchange = None if method is None else Exchange(method, inside)
        self._read_message: Callable[[bytes], None] = (
            self._read_hello if method is None else self._read_first
        )
        self.work: Callable[[], Awaitable[Work]] | None = None
        self._then: Callable[[Any], None] | None = None  # takes the result of the work
        self._preamble = b""
        self._to_send = b""  # in the states PROVE and ANSWER
        self._awaits_proof = False  # the server, which then reads no records yet
        # The hello of a peer; of a server also the message.
        self._unproven: tuple[bytes, Hello] | None = None

    @property
    def done(self) -> bool:
        """Whether the peer's hello is valid; a server must still send `data_to_send` then."""
        return self.peer is not None

    def ended(self) -> Ended:
        """Give what is needed once it is `done`, and all was sent."""
        assert self.peer is not None
        return Ended(self.peer, self.server_side)

    def data_to_send(self) -> bytes:
        """Return what this side has to send now, once: its hello, or a proof; else b""."""
        state = self.state
        if state not in (State.SILENT, State.PROVE, State.ANSWER):
            return b""
        self._advance(Event.SEND)
        if self._to_send:
            data, self._to_send = self._to_send, b""
            return data
        if state is State.SILENT and self._exchange is not None:
            return self._exchange.greet(self.hello)
        return self.hello.encoded

    def receive(self, data: bytes | bytearray | memoryview) -> int:
        """Process received bytes.

        Returns
        -------
        int
            How many bytes of *data* were consumed; the rest belongs to the records after the
            peer's hello. At most ``PREAMBLE_BYTES + HELLO_BYTES_LIMIT`` are ever consumed, with
            a method at most three times as many. While there is something to send, or work to
            wait for, nothing is.

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
            while used_bytes < len(view) and not self.done and self.state in _READING:
                part = view[used_bytes : used_bytes + self._wanted_bytes - len(self._buffer)]
                used_bytes += len(part)
                if len(part) == self._wanted_bytes:  # nearly always
                    self._read(bytes(part))
                    continue
                self._buffer += part
                if len(self._buffer) < self._wanted_bytes:
                    self._check_start(self._buffer)
                    continue
                whole, self._buffer = bytes(self._buffer), bytearray()
                self._read(whole)
        except ProtocolError as error:
            self._fail(error)
            raise
        return used_bytes

    def go_on(self, outcome: Work) -> None:
        """Go on after the work: `data_to_send` and `receive` may have more to do.

        Parameters
        ----------
        outcome : callable
            What was awaited. It returns the result of the work, or raises its error.

        Raises
        ------
        ProtocolError
            As from `receive`.
        """
        self._advance(Event.WORKED)
        then, self.work, self._then = self._then, None, None
        assert then is not None
        try:
            then(self._result(outcome))
        except ProtocolError as error:
            self._fail(error)
            raise

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

    def _read(self, whole: bytes) -> None:
        """Read a whole preamble, or the whole message behind one."""
        if self.state is State.PREAMBLE:
            if not whole.startswith(MAGIC):
                self._check_start(whole)
            self._read_preamble(whole)
        else:
            self._wanted_bytes = PREAMBLE_BYTES
            self._read_message(whole)

    def _check_start(self, start: bytes | bytearray) -> None:
        """Refuse a program of another protocol by the first bytes of its preamble."""
        if self.state is State.PREAMBLE:
            raise_if_foreign(bytes(start), self.hello.scheme, self.server_side)

    def _read_preamble(self, preamble: bytes) -> None:
        _, major, minor, _, hello_bytes = PREAMBLE.unpack(preamble)
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
        if self._preamble and self._preamble[:_HEAD_BYTES] != preamble[:_HEAD_BYTES]:
            raise ProtocolError("the preambles of the peer's messages have different versions")
        self.version = _VERSION if minor >= MINOR_VERSION else (major, minor)
        self._preamble = preamble
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
        if self.server_side and self._exchange is not None:
            seal = functools.partial(self._exchange.seal, self.hello.encoded)
            self._do(seal, functools.partial(self._end, peer))
        else:
            self._end(peer, b"")

    def _end(self, peer: Hello, to_send: bytes) -> None:
        """End the handshake. Of a server that has proved its hello, that is to be sent."""
        # Free what these closures hold: it is not needed any more, and connections are many.
        self._refuse = self._answer = None
        self._read_message = self._read_nothing
        self._unproven = self._exchange = self._method = None
        self._to_send = to_send
        self._buffer = _NOTHING
        self.peer = peer
        self._advance(Event.HELLO)

    @staticmethod
    def _read_nothing(body: bytes) -> None:
        """Hold no reference to this handshake: it is over."""

    def _refused(self, reason: str) -> RefusedError:
        return RefusedError(reason, self._refusal(reason))

    # ---- with a method of authentication

    def _do(self, work: Work, then: Callable[[Any], None]) -> None:
        """Do work, and go on with its result: at once, or after the owner has awaited it."""
        assert self._method is not None
        if self._method.elsewhere is None:
            then(self._result(work))
            return
        self.work, self._then = functools.partial(self._method.elsewhere, work), then
        self._advance(Event.WORK)

    def _result(self, work: Work) -> Any:
        """Give the result of work; the peer learns why it has none."""
        try:
            return work()
        except RefusedError as error:
            raise self._refused(str(error)) from error
        except UnavailableError as error:
            side = "server" if self.server_side else "client"
            raise ProtocolError(f"the {side} cannot authenticate: {error}") from error

    def _read_first(self, body: bytes) -> None:
        """Read a client's hello, or a server's challenge."""
        assert self._exchange is not None and self._method is not None
        if self.server_side:
            client = self._decode(body)
            try:
                to_send = self._exchange.challenge(self._preamble + body, client)
            except RefusedError as error:
                raise self._refused(str(error)) from None
            self._unproven = b"", client  # the message is in the exchange
            self._send_proof(self._read_client_proof, to_send)
        else:
            content = unpack_map(body, "the server's challenge")
            if "challenge" not in content:
                self._decode(body)  # it may be a refusal
                raise self._refused(self._method.requires)
            self._awaits_proof = True
            self._exchange.take_challenge(self._preamble + body, content)
            then = functools.partial(self._send_proof, self._read_server_hello)
            self._do(self._exchange.answer, then)

    def _send_proof(self, read_next: Callable[[bytes], None], to_send: bytes) -> None:
        self._awaits_proof = False
        self._to_send = to_send
        self._read_message = read_next
        self._advance(Event.CHALLENGE)

    def _read_client_proof(self, body: bytes) -> None:
        assert self._exchange is not None and self._method is not None
        if not self._method.is_proof(body):
            self._decode(body)  # it may be a refusal
        self._do(functools.partial(self._exchange.check_client, body), self._proved)

    def _read_server_hello(self, body: bytes) -> None:
        self._unproven = self._preamble + body, self._decode(body)
        self._read_message = self._read_server_proof
        self._advance(Event.UNPROVEN)

    def _read_server_proof(self, body: bytes) -> None:
        assert self._exchange is not None and self._unproven is not None
        message, _ = self._unproven
        self._do(functools.partial(self._exchange.check_server, message, body), self._proved)

    def _proved(self, _: None) -> None:
        assert self._unproven is not None
        self._accept(self._unproven[1])

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

"""The handshake of the fabric protocol, without I/O: bytes in, bytes out.

The specification is ``docs/wire-protocol.md``. What arrives is untrusted: it is bounded before it
is stored, and nothing in it is unpickled or run.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import msgpack

from dask_fabric import __version__
from dask_fabric.errors import (
    ForeignProtocolError,
    LimitError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
)
from dask_fabric.wire.foreign import MAGIC, PREAMBLE_BYTES, raise_if_foreign, unknown
from dask_fabric.wire.framing import error_record

MAJOR_VERSION = 1
MINOR_VERSION = 0
PREAMBLE = struct.Struct("<8sBBHI")  # magic, major, minor, flags, bytes of the hello
HELLO_BYTES_LIMIT = 65536
TEXT_BYTES_LIMIT = 4096
NAME_BYTES_LIMIT = 256
ENTRY_COUNT_LIMIT = 256
OMITTED_IF_EMPTY = ("refused", "boot", "cma", "address", "error")
NESTING_LIMIT = 16


@dataclass(frozen=True)
class Hello:
    """What one side says of itself.

    Parameters
    ----------
    scheme : str
        The scheme of the address that this side was given, without ``://``.
    software : str
        Name and version, for messages only.
    pid : int
        Process id in the sender's own namespace.
    paths, memory : tuple of str
        The paths that frames may take and the kinds of memory that they may live in.
    authentication, features : tuple of str
        Room for later versions: what the side can do and would use if both can.
    limits : mapping of str to int
        The most that this side takes: ``frames`` (count), ``header`` and ``message`` (bytes).
    refused : mapping of str to str
        Paths that this side will not use with this peer, each with the reason.
    boot : str
        What names the running system of this host, the same for all its processes.
    cma : mapping
        ``address`` (int) and ``nonce`` (bytes): what stands where in this process's memory, so that
        the peer can find out whether it may read it.
    address : str
        Over a Unix socket: the ``host:port`` that a client wants, or that a server listens on.
    error : str
        Not empty in the hello of a side that refuses the other: the reason.
    """

    scheme: str = "fabric"
    software: str = f"dask-fabric {__version__}"
    pid: int = 0
    paths: tuple[str, ...] = ("stream",)
    memory: tuple[str, ...] = ("host",)
    authentication: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    boot: str = ""
    cma: Mapping[str, int | bytes] = field(default_factory=dict)
    address: str = ""
    error: str = ""

    def encode(self) -> bytes:
        """Return the preamble and the hello as they go over the wire.

        Raises
        ------
        ValueError
            The hello is larger than the protocol allows.
        """
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content = {k: v for k, v in content.items() if v or k not in OMITTED_IF_EMPTY}
        body = msgpack.packb(content)
        if len(body) > HELLO_BYTES_LIMIT:
            raise ValueError(f"a hello of {len(body)} bytes; at most {HELLO_BYTES_LIMIT} may be")
        return PREAMBLE.pack(MAGIC, MAJOR_VERSION, MINOR_VERSION, 0, len(body)) + body

    @functools.cached_property
    def encoded(self) -> bytes:
        """What `encode` returns, made once."""
        return self.encode()

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        """Return the hello in *body* (without preamble); unknown keys are ignored.

        Raises
        ------
        ProtocolError
            *body* is not a msgpack map with the fields of a hello.
        """
        content = unpack_map(body)
        if not content.get("error"):
            for key in ("scheme", "paths", "memory"):
                if key not in content:
                    raise ProtocolError(f"the peer's hello lacks the field {key!r}")
        known = {key: value for key, value in content.items() if key in FIELD_CHECKS}
        for key, value in known.items():
            if not FIELD_CHECKS[key](value):
                raise ProtocolError(f"field {key!r} of the peer's hello is invalid: {value!r:.80}")
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in known.items()})


# The same few hellos come and go with every connection: a process says the same each time.
_KNOWN_HELLO_BYTES = 1024


def _decoded(body: bytes) -> Hello:
    return _decoded_small(body) if len(body) <= _KNOWN_HELLO_BYTES else Hello.decode(body)


_decoded_small = functools.lru_cache(maxsize=256)(Hello.decode)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= NAME_BYTES_LIMIT and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def is_reasons(value: object) -> bool:
    """Whether a decoded value is a map of names to names."""
    return isinstance(value, dict) and all(map(_is_name, value.values()))


def _is_memory(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("address"))
        and isinstance(value.get("nonce"), bytes)
    )


FIELD_CHECKS: dict[str, Callable[[object], bool]] = {
    "scheme": _is_name,
    "software": _is_name,
    "pid": _is_count,
    "paths": _is_names,
    "memory": _is_names,
    "authentication": _is_names,
    "features": _is_names,
    "limits": _is_counts,
    "refused": is_reasons,
    "boot": _is_name,
    "cma": _is_memory,
    "address": _is_name,
    "error": _is_text,
}


def unpack_map(body: bytes) -> dict:
    """Decode one untrusted map, within narrow bounds.

    Raises
    ------
    ProtocolError
        It is something else, or larger.
    """
    try:
        content = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map_of_names,
            max_str_len=TEXT_BYTES_LIMIT,
            max_bin_len=TEXT_BYTES_LIMIT,
            max_array_len=ENTRY_COUNT_LIMIT,
            max_map_len=ENTRY_COUNT_LIMIT,
            max_ext_len=0,
        )
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}, not a map")
        _check_nesting(content, NESTING_LIMIT)
    except (ValueError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"the peer's hello cannot be decoded: {reason:.200}") from error
    return content


def _map_of_names(pairs: list) -> dict:
    content = dict(pairs)
    if len(content) != len(pairs) or not all(map(_is_name, content)):
        raise ValueError("a map has a key that is not a name, or the same key twice")
    return content


def _check_nesting(value: object, levels: int) -> None:
    if isinstance(value, (dict, list)):
        if not levels:
            raise ValueError(f"nested deeper than {NESTING_LIMIT} levels")
        for item in value.values() if isinstance(value, dict) else value:
            _check_nesting(item, levels - 1)


# Strings too, for these have a fast hash: both are looked up in every step of a handshake.
class State(str, enum.Enum):
    """Where a handshake stands."""

    SILENT = "our hello is not sent yet"
    PREAMBLE = "waiting for the peer's preamble"
    HELLO = "waiting for the peer's hello"
    ANSWER = "the peer's hello was good, ours is not sent yet"
    DONE = "both hellos were exchanged"
    FAILED = "an error ended it"


class Event(str, enum.Enum):
    """What may happen in a handshake."""

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
        What this side says of itself.
    server_side : bool
        Whether this side accepted the connection.
    refuse : callable, optional
        Called with the peer's good `Hello`; what it returns, unless empty, is the reason to turn
        the peer away.
    answer : callable, optional
        For a server: called with the client's good `Hello`; gives the hello to send in place of
        *hello*.

    Attributes
    ----------
    hello : Hello
        What this side says, or said, of itself.
    server_side : bool
    state : State
        Where the handshake stands.
    peer : Hello or None
        The other side's hello, once it was good.
    version : tuple of int or None
        Major and minor version that both sides speak, once the peer's preamble was good.
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
        """Whether the peer's hello was good; what `data_to_send` then still returns must go out."""
        return self.peer is not None

    def data_to_send(self) -> bytes:
        """Return what to send right now, once; empty when it is not this side's turn."""
        if self.state not in (State.SILENT, State.ANSWER):
            return b""
        self._advance(Event.SEND)
        return self.hello.encoded

    def receive(self, data: bytes | bytearray | memoryview) -> int:
        """Take bytes that arrived.

        Returns
        -------
        int
            How many of *data*, from its start, were consumed; the rest belongs to what follows the
            peer's hello. At most ``PREAMBLE_BYTES + HELLO_BYTES_LIMIT`` are ever consumed.

        Raises
        ------
        ProtocolError
            Or one of its subclasses, with ``reply``: the bytes to send before closing.
        RuntimeError
            The handshake is not at a point where it may be given bytes.
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
            Always, unless this is called when the handshake is over (`RuntimeError`).
        """
        state, start = self.state, bytes(self._buffer)
        self._advance(Event.FAILURE)
        if state is State.PREAMBLE and not MAGIC.startswith(start[: len(MAGIC)]):
            raise unknown(start, self.hello.scheme, self.server_side)
        peer = "client" if self.server_side else "server"
        if start or self.version:
            raise ProtocolError(f"the {peer} closed the connection in the middle of the handshake")
        advice = "" if self.server_side else " (is the address right? does it want TLS?)"
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
        self.version = major, min(minor, MINOR_VERSION)
        self._buffer.clear()
        self._wanted_bytes = hello_bytes
        self._advance(Event.PREAMBLE)

    def _read_hello(self) -> None:
        peer = _decoded(bytes(self._buffer))
        if peer.error:
            side = "client" if self.server_side else "server"
            raise RefusedError(f"the {side} refused the connection: {_one_line(peer.error)}")
        reason = self._refuse(peer) if self._refuse else None
        if reason:
            raise RefusedError(reason, self._refusal(reason))
        if self._answer:
            self.hello = self._answer(peer)
        self._buffer.clear()
        self.peer = peer
        self._advance(Event.HELLO)

    def _fail(self, error: ProtocolError) -> None:
        replied = isinstance(error, (ForeignProtocolError, RefusedError))
        # A client whose server speaks another version cannot know what that one would read.
        if not replied and (self.server_side or self.version):
            error.reply = self._refusal(str(error))
        self._advance(Event.FAILURE)

    def _refusal(self, reason: str) -> bytes:
        text = reason.encode()[:TEXT_BYTES_LIMIT].decode(errors="ignore")
        if self.server_side:
            return Hello(scheme=self.hello.scheme, error=text).encode()
        return error_record(text)  # the server took our hello already: it reads records by now


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)

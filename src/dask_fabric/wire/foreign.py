"""Peers that do not speak the fabric protocol: recognized by their first bytes.

Where possible, they get an error in their own protocol. At most ``PREAMBLE_BYTES`` bytes are
examined, and as few as needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import msgpack

from dask_fabric.errors import ForeignProtocolError

MAGIC = b"\x89fabric\x8a"
PREAMBLE_BYTES = 16

# The last one opens HTTP/2.
HTTP_METHODS = (
    *(b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH "),
    *(b"CONNECT ", b"TRACE ", b"PRI * HTTP/2"),
)
# A TLS record opens with its type and the version 3.1 to 3.4 (RFC 8446, 5.1).
TLS_HANDSHAKE = tuple(bytes([0x16, 3, minor]) for minor in range(1, 5))
TLS_ALERT = tuple(bytes([0x15, 3, minor]) for minor in range(1, 5))
# A record of type alert with fatal (2) handshake_failure (40); RFC 8446, 6.2.
TLS_REFUSAL = bytes([0x15, 3, 3, 0, 2, 2, 40])


class Foreign(NamedTuple):
    """A protocol that is not ours: its first bytes, an error text, and how to encode a reply.

    ``{scheme}`` in *text* stands for this side's scheme.
    """

    prefixes: tuple[bytes, ...]
    text: str
    encode_reply: Callable[[str], bytes]


def http_refusal(text: str) -> bytes:
    """Return an HTTP/1.1 response with status 400 and *text* as its body."""
    body = f"{text}\n".encode()
    return (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    )


def tls_refusal(text: str) -> bytes:
    """Return a TLS alert record; TLS has no room for *text*."""
    return TLS_REFUSAL


def dask_tcp_refusal(text: str) -> bytes:
    """Return a message of Dask's ``tcp://`` that raises ``TypeError(text)`` in its reader.

    Notes
    -----
    The layout is that of ``distributed``: u64 total, u64 number of frames, u64 length of each, the
    frames (``_add_frames_header`` in ``comm/tcp.py``, ``pack_frames`` in ``protocol/utils.py``).
    Frame 0 refers to the serialized object in the frames from 1 on (``protocol/core.py``,
    ``loads``), whose serializer ``error`` raises (``protocol/serialize.py``,
    ``serialization_error_loads``).
    """
    header = {"serializer": "error", "num-sub-frames": 1}
    frames = [msgpack.packb({"__Serialized__": 1}), msgpack.packb(header), text.encode()]
    packed = struct.pack(f"<Q{len(frames)}Q", len(frames), *map(len, frames)) + b"".join(frames)
    return struct.pack("<Q", len(packed)) + packed


def no_reply(text: str) -> bytes:
    """Return nothing: this peer would not understand a reply."""
    return b""


SEEN_BY_SERVER = (
    Foreign(
        HTTP_METHODS,
        "an HTTP client connected to this {scheme}:// port of Dask; it serves no web page "
        "(the dashboard is on another port, 8787 by default)",
        http_refusal,
    ),
    Foreign(
        TLS_HANDSHAKE,
        "a TLS client connected to this {scheme}:// port, which is not encrypted: give both sides "
        "certificates, or fabric.auth.encrypt: true and the same key, or give them to neither",
        tls_refusal,
    ),
    Foreign((b"SSH-",), "an SSH client connected to this {scheme}:// port of Dask", no_reply),
)
SEEN_BY_CLIENT = (
    Foreign(
        (b"HTTP/",),
        "the server at this address speaks HTTP, not {scheme}://: check the port (the dashboard's "
        "is not the scheduler's), or use ws:// if it is Dask's own",
        no_reply,
    ),
    Foreign(
        TLS_HANDSHAKE + TLS_ALERT,
        "the server at this address speaks TLS: use fabric+tls:// (or tls:// if it is Dask's own), "
        "or fabric.auth.encrypt: true",
        no_reply,
    ),
    Foreign((b"SSH-",), "the server at this address speaks SSH: check the port", no_reply),
)
DASK_TCP_SEEN_BY_SERVER = Foreign(
    (),
    "a Dask client with tcp:// or tls:// in its address connected to this {scheme}:// port: use "
    "{scheme}:// in the client's address, or start this server with protocol='tcp' (or 'tls')",
    dask_tcp_refusal,
)
DASK_TCP_SEEN_BY_CLIENT = Foreign(
    (),
    "the server at this address speaks Dask's plain tcp://: use tcp:// in the address, or start "
    "the server with protocol='{scheme}'",
    no_reply,
)


def raise_if_foreign(start: bytes, scheme: str, server_side: bool) -> None:
    """Raise once the peer's first bytes cannot be the beginning of a fabric preamble.

    Parameters
    ----------
    start : bytes
        The bytes received so far, at most ``PREAMBLE_BYTES``.
    scheme : str
        The scheme of this side's address, for the message.
    server_side : bool
        Whether this side accepted the connection.

    Raises
    ------
    ForeignProtocolError
        The message names the peer's protocol and a remedy; ``reply`` is in the peer's protocol.
        Nothing is raised while more bytes are needed to decide.
    """
    if start[: len(MAGIC)] == MAGIC[: len(start)]:
        return
    known = SEEN_BY_SERVER if server_side else SEEN_BY_CLIENT
    for foreign in known:
        if start.startswith(foreign.prefixes):
            raise _error(foreign, scheme)
    if _looks_like_dask_tcp(start):
        if len(start) < PREAMBLE_BYTES:
            return
        raise _error(DASK_TCP_SEEN_BY_SERVER if server_side else DASK_TCP_SEEN_BY_CLIENT, scheme)
    if not any(prefix.startswith(start) for foreign in known for prefix in foreign.prefixes):
        raise unknown(start, scheme, server_side)


def unknown(start: bytes, scheme: str, server_side: bool) -> ForeignProtocolError:
    """Return the error for an unknown protocol, with its first bytes, *start*."""
    peer = "client" if server_side else "server"
    return ForeignProtocolError(
        f"the {peer} does not speak {scheme}:// (its first bytes are "
        f"{bytes(start[:PREAMBLE_BYTES])!r}): check the address and the port"
    )


def _looks_like_dask_tcp(start: bytes) -> bool:
    # Dask's first message is its small handshake: u64 total < 64 KiB, u64 number of frames < 256.
    if any(start[2:8]) or any(start[9:16]):
        return False
    if len(start) < PREAMBLE_BYTES:
        return True
    total_bytes, frame_count = struct.unpack("<QQ", start)
    return frame_count > 0 and total_bytes >= 8 * (1 + frame_count)


def _error(foreign: Foreign, scheme: str) -> ForeignProtocolError:
    text = foreign.text.format(scheme=scheme)
    return ForeignProtocolError(text, foreign.encode_reply(text))

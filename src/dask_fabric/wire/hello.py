"""The hello: how one side of a connection describes itself.

The specification is ``docs/wire-protocol.md``. Received bytes are untrusted: their number is
limited before they are stored, and nothing in them is unpickled or executed.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import msgpack

from dask_fabric.config.table import LIMIT_BYTES_LEAST
from dask_fabric.errors import ProtocolError
from dask_fabric.wire.foreign import MAGIC
from dask_fabric.wire.text import is_name, one_line

MAJOR_VERSION = 1
MINOR_VERSION = 0
PREAMBLE = struct.Struct("<8sBBHI")  # magic, major, minor, flags, bytes of the hello
HELLO_BYTES_LIMIT = 65536
TEXT_BYTES_LIMIT = 4096
ENTRY_COUNT_LIMIT = 256  # of one array or map
ITEM_COUNT_LIMIT = 512  # of all together
# The lowest limits that a side may announce: Dask's handshake must fit.
LEAST_LIMITS = {"frames": 1, "header": LIMIT_BYTES_LEAST, "message": LIMIT_BYTES_LEAST}
OMITTED_IF_EMPTY = ("keys", "refused", "boot", "address", "ends", "joins", "error")
NESTING_LIMIT = 16
# An HTTP server answers after these bytes, so that a client recognizes it.
_HTTP_END = b"\r\n\r\n"
STREAM = "stream"  # the path that every side has: the connection itself
KEY, MUNGE = "key", "munge"  # methods of authentication: see `dask_fabric.wire.authentication`
NONCE_BYTES = 32
_NONCE = b"\xa5nonce\xc4\x20"  # its name, and the head of its value, in msgpack
# Features are used if both sides list them.
CHUNKS = "chunks"  # device frames are staged in chunks, see docs/wire-protocol.md


@dataclass(frozen=True)
class Hello:
    """The description that one side sends of itself.

    Parameters
    ----------
    scheme : str
        The scheme of this side's address, without ``://``.
    software : str
        Name and version, for messages only.
    pid : int
        Process id in the sender's own namespace.
    paths, memory : tuple of str
        The paths that frames may travel by, and the kinds of memory that they may be in.
    authentication : tuple of str
        Methods by which this side can prove itself: `KEY`, `MUNGE`, or none.
    keys : tuple of str
        The fingerprints of its keys, the current one first.
    features : tuple of str
        Capabilities, used if both sides list them.
    limits : mapping of str to int
        The largest message that this side accepts: ``frames`` (count), ``header`` and ``message``
        (bytes).
    refused : mapping of str to str
        Paths that this side will not use with this peer, each with the reason.
    boot : str
        The boot id of this host's running system, or a proof of knowing it.
    described : mapping of str to mapping
        Descriptions of this side's paths, by name; on the wire each is a field of its own. A
        peer's may be invalid: see `dask_fabric.paths.provider.Provider.check`.
    address : str
        Over a Unix socket: the ``host:port`` that a client dialled, or that a server listens on.
    ends : tuple of str
        From a client over TCP, if a path needs a direct connection: the addresses of its own end
        and of the end that it reached.
    joins : mapping
        From a client whose connection is to join a comm: the ``path`` that needs it, and what the
        path's provider knows it by; see `dask_fabric.paths.provider.Provider.refuse_joining`.
    error : str
        The reason, in the hello of a side that refuses the other; else empty.
    """

    scheme: str = "fabric"
    software: str = f"dask-fabric {version('dask-fabric')}"
    pid: int = 0
    paths: tuple[str, ...] = (STREAM,)
    memory: tuple[str, ...] = ("host",)
    authentication: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    boot: str = ""
    described: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    address: str = ""
    ends: tuple[str, ...] = ()
    joins: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    # By identity, and fast: caches look up the same object again.
    __hash__ = object.__hash__

    def encode(self) -> bytes:
        """Return the preamble and the hello as they are sent.

        Raises
        ------
        ValueError
            The hello is larger than the protocol allows.
        """
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        described = content.pop("described")
        content = {k: v for k, v in content.items() if v or k not in OMITTED_IF_EMPTY}
        content |= described
        content["end"] = _HTTP_END
        if self.authentication:
            content["nonce"] = bytes(NONCE_BYTES)  # last: each connection puts its own there
        body = msgpack.packb(content)
        if len(body) > HELLO_BYTES_LIMIT:
            raise ValueError(f"a hello of {len(body)} bytes, but at most {HELLO_BYTES_LIMIT} fit")
        return PREAMBLE.pack(MAGIC, MAJOR_VERSION, MINOR_VERSION, 0, len(body)) + body

    @functools.cached_property
    def encoded(self) -> bytes:
        """The result of `encode`, cached."""
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
        described = {
            path: content[path]
            for path in known.get("paths", ())
            if path not in FIELD_CHECKS and isinstance(content.get(path), dict)
        }
        known = {key: tuple(v) if isinstance(v, list) else v for key, v in known.items()}
        return cls(**known, described=described)


def has_nonce(message: bytes) -> bool:
    """Whether a hello ends with a nonce."""
    return message[-NONCE_BYTES - len(_NONCE) : -NONCE_BYTES] == _NONCE


# Most connections exchange the same few hellos, so decoding is cached.
_KNOWN_HELLO_BYTES = 1024


def decoded(body: bytes) -> Hello:
    """Return the result of `Hello.decode`; small hellos are cached, whatever their nonce."""
    if has_nonce(body):
        body = body[:-NONCE_BYTES] + bytes(NONCE_BYTES)
    return _decoded_small(body) if len(body) <= _KNOWN_HELLO_BYTES else Hello.decode(body)


_decoded_small = functools.lru_cache(maxsize=256)(Hello.decode)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(is_name, value))


def _is_limits(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_count(limit) and limit >= LEAST_LIMITS.get(name, 0) for name, limit in value.items()
    )


def _is_map(value: object) -> bool:
    return isinstance(value, dict)


def is_reasons(value: object) -> bool:
    """Whether a decoded value is a map of names to names, such as paths with reasons."""
    return isinstance(value, dict) and all(map(is_name, value.values()))


FIELD_CHECKS: dict[str, Callable[[object], bool]] = {
    "scheme": is_name,
    "software": is_name,
    "pid": _is_count,
    "paths": _is_names,
    "memory": _is_names,
    "authentication": _is_names,
    "keys": _is_names,
    "features": _is_names,
    "limits": _is_limits,
    "refused": is_reasons,
    "boot": is_name,
    "address": is_name,
    "ends": _is_names,
    "joins": _is_map,
    "error": _is_text,
}


def unpack_map(body: bytes, what: str = "the peer's hello") -> dict:
    """Decode one untrusted map, within narrow limits.

    Parameters
    ----------
    body : bytes
    what : str
        The name of the map, for the error.

    Raises
    ------
    ProtocolError
        *body* is not a map, or exceeds a limit.
    """
    counter = _Counter()
    try:
        content = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=counter.map_of_names,
            list_hook=counter.count,
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
        raise ProtocolError(f"{what} cannot be decoded: {one_line(reason[:200])}") from error
    return content


class _Counter:
    """Counts decoded items, to stop a decoder early: each map and entry costs time."""

    def __init__(self) -> None:
        self._left = ITEM_COUNT_LIMIT

    def count(self, items: list) -> list:
        self._left -= 1 + len(items)
        if self._left < 0:
            raise ValueError(f"more than {ITEM_COUNT_LIMIT} maps, arrays and entries of these")
        return items

    def map_of_names(self, pairs: list) -> dict:
        content = dict(self.count(pairs))
        if len(content) != len(pairs) or not all(map(is_name, content)):
            raise ValueError("a map has a key that is not a name, or the same key twice")
        return content


def _check_nesting(value: dict | list, levels: int) -> None:
    if not levels:
        raise ValueError(f"nested deeper than {NESTING_LIMIT} levels")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            _check_nesting(item, levels - 1)

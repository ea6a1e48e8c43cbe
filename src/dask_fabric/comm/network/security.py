"""Schemes and encryption, and the translation of connection errors to Dask's."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.tcp import RequireEncryptionMixin, _expect_tls_context

from dask_fabric.errors import (
    ChannelClosedError,
    ForeignProtocolError,
    RefusedError,
    UnavailableError,
    UnprovenError,
    VersionMismatchError,
)
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.text import one_line

if TYPE_CHECKING:
    from dask_fabric.config import Settings
    from dask_fabric.engine.channel import Channel

_TLS_HELP = "Check your security settings: https://distributed.dask.org/en/latest/tls.html"

# How a TLS record with a handshake message begins (RFC 8446, 5.1).
TLS_FIRST_BYTE = b"\x16"

# What OpenSSL's errors mean where the certificates are made from keys.
_KEY_FAILURES = {
    "UNRECOGNIZED_NAME": "the server has none of the client's keys",
    "CALLBACK_FAILED": "the client has none of the server's keys",
    "UNKNOWN_CA": "the client has another key",
    "CERTIFICATE_VERIFY_FAILED": "the server has another key",
    "HANDSHAKE_FAILURE": "the server does not encrypt by a key",
    "WRONG_VERSION_NUMBER": "the server is another program, such as one at tcp://",
    "UNEXPECTED_EOF": "the other side closed the connection, such as a server that ends",
}

# A retry cannot fix these: the peer is another program, another version, or not trusted.
_FATAL = (
    ForeignProtocolError,
    RefusedError,
    UnavailableError,
    UnprovenError,
    VersionMismatchError,
    ssl.SSLError,
)


class Encryption(NamedTuple):
    """How connections are encrypted.

    Attributes
    ----------
    ssl_context : ssl.SSLContext or None
        The TLS context that Dask has given.
    by_key : bool
        Whether TLS is from the shared key instead.
    within_host : bool
        Whether connections within a host are encrypted too, so that no path is used.
    """

    ssl_context: ssl.SSLContext | None
    by_key: bool
    within_host: bool


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One of our schemes, and whether it encrypts.

    Attributes
    ----------
    name : str
        As in ``name://``.
    tls : {"never", "if given", "always"}
        Whether an ``ssl_context`` among the connection's arguments is used or required.
    fast : bool
        Whether Unix sockets and paths other than the stream may be used.
    """

    name: str
    tls: Literal["never", "if given", "always"]
    fast: bool = False

    __hash__ = object.__hash__  # fast; each scheme is a constant

    @property
    def prefix(self) -> str:
        return f"{self.name}://"

    def encryption(self, location: str, args: Mapping[str, Any], settings: Settings) -> Encryption:
        """Give how connections of *location* are encrypted.

        Raises
        ------
        RuntimeError
            Encryption is required, but the scheme never encrypts, or neither *args* nor the
            configuration say how.
        TypeError
            The scheme needs a TLS context, and *args* has none, or something else.
        """
        by_key = settings.auth_encrypt and args.get("ssl_context") is None
        if settings.auth_encrypt and self.tls == "never":
            raise RuntimeError(
                f"fabric.auth.encrypt is true, and {self.prefix}{location} never encrypts: use "
                "fabric:// or fabric+tls://"
            )
        context = None
        given = self.tls == "if given" and args.get("ssl_context") is not None
        if given or (self.tls == "always" and not by_key):
            context = _expect_tls_context(args)
        encrypted = by_key or context is not None
        _Encrypted(self.prefix, encrypted)._check_encryption(location, args)
        everywhere = settings.auth_encrypt_local or bool(args.get("require_encryption"))
        return Encryption(context, by_key, context is not None or (by_key and everywhere))


@dataclasses.dataclass(frozen=True)
class _Encrypted(RequireEncryptionMixin):
    """The attributes that distributed's check reads."""

    prefix: str
    encrypted: bool


def refuse_plain_text(_: Hello) -> str:
    """Refuse a client without TLS, at a server that has a TLS context."""
    return f"this server requires TLS: give the client the cluster's security. {_TLS_HELP}"


def refuse_plain_text_with_key(_: Hello) -> str:
    """Refuse a client without TLS, at a server that encrypts by the shared key."""
    return (
        "this server encrypts by the shared key: give the client's process the same key file, and "
        "set fabric.auth.encrypt: true there, see `dask fabric key --help`"
    )


def comm_error(where: str, exc: Exception, by_key: bool = False) -> CommClosedError:
    """Translate an error during connecting or the handshake to Dask's errors.

    Parameters
    ----------
    where : str
        The address, or another name of the connection.
    exc : Exception
        An `OSError`, or one of the errors of dask-fabric.
    by_key : bool
        Whether TLS is from the shared key.
    """
    kind = FatalCommClosedError if isinstance(_root(exc), _FATAL) else CommClosedError
    return kind(f"in {where}: {explanation(exc, by_key)}")


def explanation(exc: Exception, by_key: bool = False) -> str:
    """Give an error of connecting or of the handshake on one line, with a hint if there is one."""
    cause = _root(exc)
    message = f"{cause.__class__.__name__}: {cause}"
    if by_key and isinstance(cause, (ssl.SSLError, ConnectionResetError)):
        known = (said for part, said in _KEY_FAILURES.items() if part in str(cause).upper())
        return one_line(
            f"encryption by the shared key failed ({next(known, cause)}): both sides need the same "
            "key file, and fabric.auth.encrypt: true, see `dask fabric key --help`"
        )
    if isinstance(cause, ConnectionResetError):
        message += " (is it a server of this scheme? does it require TLS?)"
    if isinstance(cause, ssl.SSLCertVerificationError):
        message = f"TLS certificate does not match ({cause}). {_TLS_HELP}"
    elif isinstance(cause, ssl.SSLError):
        message = f"TLS failed, or the other end does not use it ({cause}). {_TLS_HELP}"
    return one_line(message)


def just_left(exc: Exception) -> bool:
    """Whether *exc* only means that the peer disconnected before it sent anything."""
    cause = _root(exc)
    if isinstance(cause, ssl.SSLError):
        return isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    return not isinstance(cause, TimeoutError)


def _root(exc: Exception) -> Exception:
    """Give the error that closed the channel, if *exc* only reports that it is closed."""
    while isinstance(exc, ChannelClosedError) and isinstance(exc.__cause__, Exception):
        exc = exc.__cause__
    return exc


def tls_info(channel: Channel) -> dict[str, Any] | None:
    """Give ``peercert`` and ``cipher``, as distributed's own TLS comm does; None without TLS."""
    if channel.transport.cipher is None:
        return None
    return {
        "peercert": channel.transport.peer_certificate,
        "cipher": channel.transport.cipher,
    }

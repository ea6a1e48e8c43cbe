"""Schemes and encryption, and the translation of connection errors to Dask's."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.tcp import RequireEncryptionMixin, _expect_tls_context

from dask_fabric.errors import (
    ChannelClosedError,
    ForeignProtocolError,
    RefusedError,
    UnavailableError,
    VersionMismatchError,
)
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.text import one_line

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel

_TLS_HELP = "Check your security settings: https://distributed.dask.org/en/latest/tls.html"

# How a TLS record with a handshake message begins (RFC 8446, 5.1).
TLS_FIRST_BYTE = b"\x16"

# A retry cannot fix these: the peer is another program, another version, or not trusted.
_FATAL = (
    ForeignProtocolError,
    RefusedError,
    UnavailableError,
    VersionMismatchError,
    ssl.SSLError,
)


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

    def ssl_context(self, location: str, args: Mapping[str, Any]) -> ssl.SSLContext | None:
        """Give the TLS context among *args* to use for *location*, or None for plain text.

        Raises
        ------
        RuntimeError
            Encryption is required, but the scheme never encrypts, or *args* has no TLS context.
        TypeError
            The scheme needs a TLS context, and *args* has none, or something else.
        """
        needed = self.tls == "always"
        context = None
        if needed or (self.tls == "if given" and args.get("ssl_context") is not None):
            context = _expect_tls_context(args)
        _Encryption(self.prefix, context is not None)._check_encryption(location, args)
        return context


@dataclasses.dataclass(frozen=True)
class _Encryption(RequireEncryptionMixin):
    """The attributes that distributed's check reads."""

    prefix: str
    encrypted: bool


def refuse_plain_text(_: Hello) -> str:
    """Refuse a client without TLS, at a server that has a TLS context."""
    return f"this server requires TLS: give the client the cluster's security. {_TLS_HELP}"


def comm_error(where: str, exc: Exception) -> CommClosedError:
    """Translate an error during connecting or the handshake to Dask's errors.

    Parameters
    ----------
    where : str
        The address, or another name of the connection.
    exc : Exception
        An `OSError`, or one of the errors of dask-fabric.
    """
    kind = FatalCommClosedError if isinstance(_root(exc), _FATAL) else CommClosedError
    return kind(f"in {where}: {explanation(exc)}")


def explanation(exc: Exception) -> str:
    """Give an error of connecting or of the handshake on one line, with a hint if there is one."""
    cause = _root(exc)
    message = f"{cause.__class__.__name__}: {cause}"
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


def tls_info(channel: Channel) -> dict[str, Any]:
    """Give the same facts as distributed's own TLS comm: ``peercert`` and ``cipher``."""
    return {
        "peercert": channel.transport.peer_certificate,
        "cipher": channel.transport.cipher,
    }

"""Moves the bytes of a connection through its socket inside TLS.

`tls_transport` gives one of two classes. `NativeTLSTransport` calls OpenSSL itself, so that native
threads move large messages without the GIL. `TLSTransport` uses the methods of Python's
`ssl.SSLSocket`, where OpenSSL cannot be called (`dask_fabric.paths.openssl`): they move a record of
16 KiB per call and need the GIL, so the loop moves all bytes.

OpenSSL uses the socket itself: with full packets and few wake-ups that is faster than memory BIOs
(1.66 against 1.44 GB/s between two processes; without these two 1.26).
"""

import socket
import ssl

from dask_fabric.engine.transport import Transport

class TLSTransport(Transport):
    """Moves bytes by the methods of an `ssl.SSLSocket`.

    Parameters
    ----------
    sock : ssl.SSLSocket
        Connected and non-blocking, its handshake not begun; owned by the transport from now on.
    """
    def __init__(self, sock: ssl.SSLSocket): ...

class NativeTLSTransport(TLSTransport):
    """Moves bytes by OpenSSL's functions, on the session of an `ssl.SSLSocket`.

    Parameters
    ----------
    sock : ssl.SSLSocket
        As for `TLSTransport`.
    """
    def __init__(self, sock: ssl.SSLSocket): ...

def tls_transport(
    sock: socket.socket,
    ssl_context: ssl.SSLContext,
    server_side: bool,
    bulk_bytes: int,
    server_hostname: str | None = None,
) -> TLSTransport:
    """Make the transport of a TLS connection.

    Parameters
    ----------
    sock : socket.socket
        As for `PlainTransport`.
    ssl_context : ssl.SSLContext
    server_side : bool
    bulk_bytes : int
        Larger amounts are moved by native threads, where that is possible.
    server_hostname : str, optional
        For the client, where the context checks host names.

    Returns
    -------
    TLSTransport
    """

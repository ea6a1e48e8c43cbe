"""Moves the bytes of a connection through its socket, without TLS."""

import socket
from typing import Any, Final

class Transport:
    """Base class: moves bytes through one socket, with or without TLS.

    Attributes
    ----------
    sock : socket.socket
        Connected and non-blocking; owned by the channel that has the transport.
    peer_certificate : dict or None
        As from `ssl.SSLSocket.getpeercert`.
    cipher : tuple or None
        Name, protocol and secret bits of the cipher in use.
    """

    sock: Final[Any]
    is_secure: Final[bool]
    peer_certificate: Final[Any]
    cipher: Final[Any]

class PlainTransport(Transport):
    """Moves bytes through one socket without TLS.

    Parameters
    ----------
    sock : socket.socket
        Connected and non-blocking; owned by the transport from now on.
    bulk_bytes : int
        Larger amounts are moved by native threads.
    """
    def __init__(self, sock: socket.socket, bulk_bytes: int): ...

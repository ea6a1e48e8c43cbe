"""How the bytes of a connection go through its socket, where no TLS is needed."""

import socket
from typing import Any, Final

class Transport:
    """The bytes of one socket; the base of those with TLS and without.

    Attributes
    ----------
    sock : socket.socket
        Connected and non-blocking; belongs to the channel that has the transport.
    peer_certificate : dict or None
        As `ssl.SSLSocket.getpeercert` gives it.
    cipher : tuple or None
        Name, protocol and secret bits of the cipher in use.
    """

    sock: Final[Any]
    is_secure: Final[bool]
    peer_certificate: Final[Any]
    cipher: Final[Any]

class PlainTransport(Transport):
    """The bytes of one socket as they are.

    Parameters
    ----------
    sock : socket.socket
        Connected and non-blocking; belongs to the transport from now on.
    bulk_bytes : int
        Above it, bytes are moved by native threads.
    """
    def __init__(self, sock: socket.socket, bulk_bytes: int): ...

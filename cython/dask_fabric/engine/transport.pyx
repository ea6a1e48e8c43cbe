"""How the bytes of a connection go through its socket, where no TLS is needed."""

import os

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno

from dask_fabric.linux cimport MSG_DONTWAIT, recv
from dask_fabric.paths.stream cimport (
    FAILED, SEND, Progress, SocketTransfer, advance, new_transfer,
)
from dask_fabric.wire.send_buffer cimport SendBuffer

cdef enum:
    TURN_BYTES = 1 << 20        # what is sent before the loop sees to others


@cython.auto_pickle(False)
cdef class Transport:
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

    cdef bint secure(self) except -1:
        """Go on to secure the socket; True when that is done."""
        return True

    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2:
        """Read once; 0 at the end of the stream, -1 where nothing is there yet."""
        raise NotImplementedError

    cdef write(self, SendBuffer outgoing):
        """Write what the socket takes now, and not so much that others have to wait."""
        raise NotImplementedError

    cdef bint has_pending(self) except -1:
        """Whether bytes are there that the loop cannot see in the socket."""
        return False

    cdef await_bytes(self, Py_ssize_t missing_bytes):
        """The loop is about to wait for so many bytes."""


@cython.auto_pickle(False)
@cython.final
cdef class PlainTransport(Transport):
    """The bytes of one socket as they are.

    Parameters
    ----------
    sock : socket.socket
        Connected and non-blocking; belongs to the transport from now on.
    bulk_bytes : int
        Above it, bytes are moved by native threads.
    """

    def __init__(self, sock, bulk_bytes):
        self.sock = sock
        self.fd = sock.fileno()
        self.bulk_bytes = bulk_bytes
        self.is_secure = True

    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2:
        cdef ssize_t moved = recv(self.fd, room, nbytes, MSG_DONTWAIT)
        if moved >= 0:
            return moved
        if errno == EAGAIN or errno == EINTR:
            return -1
        raise OSError(errno, os.strerror(errno))

    cdef write(self, SendBuffer outgoing):
        cdef SocketTransfer transfer = new_transfer(
            self.fd, SEND, outgoing.vectors + outgoing.first, outgoing.last - outgoing.first
        )
        cdef Progress progress = advance(&transfer, TURN_BYTES)
        if progress == FAILED:
            raise OSError(transfer.error, os.strerror(transfer.error))
        outgoing.consumed(transfer.vector_index, transfer.moved_bytes)

"""Moves the bytes of a connection through its socket, without TLS."""

import os

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno

from dask_fabric.linux cimport MSG_DONTWAIT, recv
from dask_fabric.paths.stream cimport (
    FAILED, SEND, Progress, SocketTransfer, advance, new_transfer,
)
from dask_fabric.wire.send_buffer cimport SendBuffer

cdef enum:
    TURN_BYTES = 1 << 20        # the most that the loop sends in one turn


@cython.auto_pickle(False)
cdef class Transport:
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

    cdef bint secure(self) except -1:
        """Continue the TLS handshake, if any; True when it is complete."""
        return True

    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2:
        """Read once; 0 at the end of the stream, -1 if nothing is there yet."""
        raise NotImplementedError

    cdef write(self, SendBuffer outgoing):
        """Write as much as the socket accepts, up to the budget of one turn."""
        raise NotImplementedError

    cdef bint has_pending(self) except -1:
        """Whether received bytes are buffered where the loop does not see them, in OpenSSL."""
        return False

    cdef await_bytes(self, Py_ssize_t missing_bytes):
        """The loop is about to wait for this many bytes of a message."""

    cdef forked(self):
        """In a forked child: close the copy of the socket."""
        self.fd = -1
        self.sock.close()


@cython.auto_pickle(False)
@cython.final
cdef class PlainTransport(Transport):
    """Moves bytes through one socket without TLS.

    Parameters
    ----------
    sock : socket.socket
        Connected and non-blocking; owned by the transport from now on.
    bulk_bytes : int
        Larger amounts are moved by native threads.
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
            self.fd, NULL, SEND, outgoing.vectors + outgoing.first, outgoing.last - outgoing.first
        )
        cdef Progress progress = advance(&transfer, TURN_BYTES)
        if progress == FAILED:
            raise OSError(transfer.error, os.strerror(transfer.error))
        outgoing.consumed(transfer.vector_index, transfer.moved_bytes)

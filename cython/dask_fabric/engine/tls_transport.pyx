"""Moves the bytes of a connection through its socket inside TLS.

`tls_transport` gives one of two classes. `NativeTLSTransport` calls OpenSSL itself, so that native
threads move large messages without the GIL. `TLSTransport` uses the methods of Python's
`ssl.SSLSocket`, where OpenSSL cannot be called (`dask_fabric.paths.openssl`): they move a record of
16 KiB per call and need the GIL, so the loop moves all bytes.

OpenSSL uses the socket itself: with full packets and few wake-ups that is faster than memory BIOs
(1.66 against 1.44 GB/s between two processes; without these two 1.26).
"""

import os
import ssl

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EPIPE, EPROTO, errno

from dask_fabric.engine.transport cimport Transport
from dask_fabric.linux cimport iovec
from dask_fabric.paths.openssl cimport (
    RECORD_BYTES, TLS_NOTHING, TLS_WANTS_READ, TLS_WANTS_WRITE, TLSSession, TLSWish, free_session,
    loop_has_pending, loop_read, loop_write, new_session,
)
from dask_fabric.paths.stream cimport LOW_WATER_BYTES, cork, encrypted_low_water, set_low_water
from dask_fabric.wire.send_buffer cimport PY_SSIZE_T_MAX, SendBuffer

cdef enum:
    TURN_BYTES = 1 << 20        # the most that the loop sends in one turn

_of_the_parent = []             # sessions that a forked child must not free


def tls_transport(sock, ssl_context, server_side, bulk_bytes, server_hostname=None):
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
    sock = ssl_context.wrap_socket(
        sock, server_side=server_side, server_hostname=server_hostname,
        do_handshake_on_connect=False, suppress_ragged_eofs=True,
    )
    cdef NativeTLSTransport native = NativeTLSTransport(sock)
    if native.tls == NULL:
        return TLSTransport(sock)
    # A job begins when OpenSSL holds nothing: it must not hold all that is missing.
    native.bulk_bytes = max(<Py_ssize_t> bulk_bytes, <Py_ssize_t> RECORD_BYTES)
    return native


@cython.auto_pickle(False)
cdef class TLSTransport(Transport):
    """Moves bytes by the methods of an `ssl.SSLSocket`.

    Parameters
    ----------
    sock : ssl.SSLSocket
        Connected and non-blocking, its handshake not begun; owned by the transport from now on.
    """

    cdef int low_water_bytes        # SO_RCVLOWAT: with fewer bytes the socket is not readable
    cdef object recv_into           # methods of the socket, looked up once
    cdef object send_from

    def __init__(self, sock):
        self.sock = sock
        self.fd = sock.fileno()
        self.recv_into, self.send_from = sock.recv_into, sock.send
        self.bulk_bytes = PY_SSIZE_T_MAX

    cdef bint secure(self) except -1:
        self.read_wants_write = False
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self.read_wants_write = True
            return False
        self.is_secure = True
        # Kept here, because statistics may be read after the socket is closed.
        self.peer_certificate = self.sock.getpeercert()
        self.cipher = self.sock.cipher()
        return True

    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2:
        try:
            return self.recv_into(PyMemoryView_FromMemory(room, nbytes, PyBUF_WRITE), nbytes)
        except ssl.SSLWantReadError:
            return -1
        except ssl.SSLWantWriteError:
            self.read_wants_write = True
            return -1
        except ssl.SSLEOFError:
            return 0

    cdef write(self, SendBuffer outgoing):
        cdef bint corked = outgoing.pending_bytes > RECORD_BYTES
        # Each record is one send, but a packet may hold several: see `cork`.
        if corked:
            cork(self.fd, True)
        try:
            self._write_records(outgoing)
        finally:
            if corked:
                cork(self.fd, False)

    cdef _write_records(self, SendBuffer outgoing):
        cdef iovec *vector
        cdef Py_ssize_t moved, turn_bytes = 0
        while outgoing.pending_bytes and turn_bytes < TURN_BYTES:
            vector = outgoing.vectors + outgoing.first
            moved = self._write(<const char *> vector.iov_base, vector.iov_len)
            if moved < 0:
                return
            outgoing.sent(moved)
            turn_bytes += moved

    cdef Py_ssize_t _write(self, const char *data, Py_ssize_t nbytes) except -2:
        """Write once; -1 if the socket has no room, or the write must wait for a read."""
        try:
            return self.send_from(PyMemoryView_FromMemory(<char *> data, nbytes, PyBUF_READ))
        except ssl.SSLWantWriteError:
            return -1
        except ssl.SSLWantReadError:
            self.write_wants_read = True
            return -1

    cdef bint has_pending(self) except -1:
        # Bytes that OpenSSL has decrypted do not make the socket readable.
        return self.is_secure and self.sock.pending() > 0

    cdef await_bytes(self, Py_ssize_t missing_bytes):
        """While much is missing, wake up once for many records."""
        cdef int wanted_bytes = min(encrypted_low_water(max(0, missing_bytes)), LOW_WATER_BYTES)
        if wanted_bytes != self.low_water_bytes:
            self.low_water_bytes = wanted_bytes
            set_low_water(self.fd, wanted_bytes)


@cython.auto_pickle(False)
@cython.final
cdef class NativeTLSTransport(TLSTransport):
    """Moves bytes by OpenSSL's functions, on the session of an `ssl.SSLSocket`.

    Parameters
    ----------
    sock : ssl.SSLSocket
        As for `TLSTransport`.
    """

    cdef object sslobject           # owns the session; the socket drops it when it is shut down

    def __init__(self, sock):
        super().__init__(sock)
        self.sslobject = getattr(sock, "_sslobj", None)
        self.tls = new_session(self.sslobject, self.fd)

    def __dealloc__(self):
        if self.tls != NULL:
            free_session(self.tls)

    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2:
        cdef TLSWish wish = TLS_NOTHING
        cdef ssize_t moved = loop_read(self.tls, room, nbytes, &wish)
        if moved < 0:
            self.read_wants_write = wish == TLS_WANTS_WRITE
            if wish == TLS_NOTHING:
                raise _error()
        return moved

    cdef Py_ssize_t _write(self, const char *data, Py_ssize_t nbytes) except -2:
        cdef TLSWish wish = TLS_NOTHING
        cdef ssize_t moved = loop_write(self.tls, data, nbytes, &wish)
        if moved <= 0:
            self.write_wants_read = wish == TLS_WANTS_READ
            if wish == TLS_NOTHING:
                raise _error() if moved < 0 else BrokenPipeError(EPIPE, os.strerror(EPIPE))
            return -1
        return moved

    cdef bint has_pending(self) except -1:
        return self.is_secure and loop_has_pending(self.tls)

    cdef await_bytes(self, Py_ssize_t missing_bytes):
        """Native threads receive what is large."""

    cdef forked(self):
        # A thread of the parent may have been changing the session: freeing it could crash.
        _of_the_parent.append(self.sslobject)
        Transport.forked(self)


cdef _error():
    if errno == EPROTO:
        return ssl.SSLError(
            EPROTO, "the TLS stream is broken: a record was changed on its way, or is not one"
        )
    return OSError(errno, os.strerror(errno))

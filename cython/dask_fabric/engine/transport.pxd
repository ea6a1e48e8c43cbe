"""Moves the bytes of a connection through its socket."""

from dask_fabric.paths.openssl cimport TLSSession
from dask_fabric.wire.send_buffer cimport SendBuffer

cdef class Transport:
    cdef readonly object sock
    cdef int fd
    cdef TLSSession *tls                # for native threads; NULL for plain text
    cdef Py_ssize_t bulk_bytes          # larger amounts are moved by native threads
    cdef readonly bint is_secure        # the TLS handshake, if any, is complete
    cdef readonly object peer_certificate
    cdef readonly object cipher
    cdef bint read_wants_write          # TLS must write before it can read more,
    cdef bint write_wants_read          # or read before it can write more

    cdef bint secure(self) except -1
    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2
    cdef write(self, SendBuffer outgoing)
    cdef bint has_pending(self) except -1
    cdef await_bytes(self, Py_ssize_t missing_bytes)
    cdef forked(self)

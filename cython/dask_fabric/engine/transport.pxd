"""How the bytes of a connection go through its socket."""

from dask_fabric.wire.send_buffer cimport SendBuffer

cdef class Transport:
    cdef readonly object sock
    cdef int fd
    cdef Py_ssize_t bulk_bytes          # above it, bytes are moved by native threads
    cdef readonly bint is_secure        # hellos may be exchanged
    cdef readonly object peer_certificate
    cdef readonly object cipher
    cdef bint read_wants_write          # it has to send before it can receive more,
    cdef bint write_wants_read          # or the other way round

    cdef bint secure(self) except -1
    cdef Py_ssize_t read(self, char *room, Py_ssize_t nbytes) except -2
    cdef write(self, SendBuffer outgoing)
    cdef bint has_pending(self) except -1
    cdef await_bytes(self, Py_ssize_t missing_bytes)

"""TLS without the GIL, by the OpenSSL that Python's ssl module uses."""

from cpython.object cimport PyObject

from dask_fabric.linux cimport pthread_mutex_t

cdef enum:
    RECORD_BYTES = 16 << 10     # the most that a TLS record holds (RFC 8446, 5.1)

cdef struct TLSSession:
    void *ssl
    pthread_mutex_t mutex       # OpenSSL lets one thread at a time use `ssl`
    Py_ssize_t waiting_count    # of threads of Python, before which the others step back; an atomic

cdef enum TLSWish:
    TLS_NOTHING = 0
    TLS_WANTS_READ = 1          # a write must wait for bytes from the peer,
    TLS_WANTS_WRITE = 2         # or a read for room in the socket

cdef TLSSession *new_session(object sslobject, int fd) except? NULL
cdef void free_session(TLSSession *session) noexcept nogil
cdef ssize_t session_read(TLSSession *session, void *room, size_t nbytes) noexcept nogil
cdef ssize_t session_write(TLSSession *session, const void *data, size_t nbytes) noexcept nogil
cdef bint session_has_pending(TLSSession *session) noexcept nogil
cdef ssize_t loop_read(
    TLSSession *session, void *room, size_t nbytes, TLSWish *wish
) noexcept
cdef ssize_t loop_write(
    TLSSession *session, const void *data, size_t nbytes, TLSWish *wish
) noexcept
cdef bint loop_has_pending(TLSSession *session) noexcept

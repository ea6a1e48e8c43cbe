"""Jobs of native threads that move bytes through sockets, without the GIL."""

from libc.stdint cimport int64_t

from dask_fabric.jobs.completions cimport Job
from dask_fabric.linux cimport iovec
from dask_fabric.paths.openssl cimport TLSSession
from dask_fabric.paths.stream cimport Direction

cdef class SocketJob(Job):
    cdef int fd
    cdef TLSSession *tls
    cdef Direction direction
    cdef iovec *vectors             # copied when the job begins
    cdef size_t vector_count
    cdef int64_t begin_ns

    cdef size_t moved_bytes(self) noexcept

cdef int start() except -1
cdef SocketJob new_socket_job(
    object sock, int fd, TLSSession *tls, Direction direction, iovec *vectors, size_t vector_count
)

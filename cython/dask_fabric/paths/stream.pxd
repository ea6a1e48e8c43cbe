"""The `stream` path: frames move on the control stream, from and to their final memory."""

from dask_fabric.linux cimport iovec
from dask_fabric.paths.openssl cimport TLSSession

cdef enum:
    LOW_WATER_BYTES = 512 << 10

cdef enum Direction:
    RECEIVE = 0
    SEND = 1

cdef enum Progress:
    COMPLETE = 0        # every byte has moved
    BLOCKED = 1         # the socket has no more bytes, or no more room
    UNFINISHED = 2      # the budget is used up: call again after a turn of the other jobs
    END_OF_STREAM = 3
    FAILED = 4          # `error` holds the errno

cdef struct SocketTransfer:
    int fd
    TLSSession *tls             # NULL for plain text
    Direction direction
    iovec *vectors
    size_t vector_count
    size_t vector_index
    size_t moved_bytes
    int error
    size_t total_bytes
    int low_water_bytes         # of the socket; 0 if it was never set

cdef SocketTransfer new_transfer(
    int fd, TLSSession *tls, Direction direction, iovec *vectors, size_t vector_count
) noexcept nogil
cdef Progress advance(SocketTransfer *transfer, size_t budget_bytes) noexcept nogil
cdef size_t encrypted_low_water(size_t missing_bytes) noexcept nogil
cdef void raise_low_water(SocketTransfer *transfer) noexcept nogil
cdef void reset_low_water(SocketTransfer *transfer) noexcept nogil
cdef void set_low_water(int fd, int nbytes) noexcept nogil
cdef void cork(int fd, bint corked) noexcept nogil
cdef void reset(int fd) noexcept nogil

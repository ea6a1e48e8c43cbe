"""The engine: native threads that move bytes without the GIL and report to a port when done."""

from libc.stdint cimport uint64_t

from dask_fabric.linux cimport iovec
from dask_fabric.paths.stream cimport Direction, Progress

cdef struct Completion:
    uint64_t job
    Progress progress
    int error
    size_t moved_bytes

cdef struct Job

# Where the ended jobs of one event loop are put; its event fd wakes that loop.
cdef struct Mailbox:
    int event_fd
    Job *ended

cdef Mailbox *open_mailbox() except NULL
cdef void close_mailbox(Mailbox *mailbox) noexcept nogil
cdef bint next_completion(Mailbox *mailbox, Completion *completion) noexcept nogil

cdef int start() except -1
cdef uint64_t submit(
    Mailbox *mailbox, int fd, Direction direction, const iovec *vectors, size_t vector_count
) except 0
cdef bint cancel(uint64_t job) noexcept nogil
cdef size_t moved_bytes(uint64_t job) noexcept nogil

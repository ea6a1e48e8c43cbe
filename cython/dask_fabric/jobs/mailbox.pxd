"""A mailbox: where native threads put the ends of jobs, for one event loop to collect."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.linux cimport pthread_mutex_t

cdef struct Completion:
    uint64_t tag                # of the job, as its completion queue knows it
    int progress                # a `dask_fabric.paths.stream.Progress`
    int error                   # errno, where it failed
    size_t moved_bytes
    int64_t busy_ns             # in system calls that move bytes; 0 where nobody knows
    int64_t posted_ns           # when it was put in

# Made before a job starts, so that its end needs no memory.
cdef struct CompletionNode:
    Completion completion
    CompletionNode *next

cdef struct Mailbox:
    int event_fd                # readable while there is something to collect
    pthread_mutex_t mutex
    CompletionNode *first
    CompletionNode *last

cdef Mailbox *open_mailbox() except NULL
cdef void close_mailbox(Mailbox *mailbox) noexcept nogil
cdef void post(Mailbox *mailbox, CompletionNode *node) noexcept nogil
cdef bint next_completion(Mailbox *mailbox, Completion *completion) noexcept nogil
cdef void forget_all(Mailbox *mailbox) noexcept nogil

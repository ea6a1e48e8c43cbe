"""A mailbox: native threads post completions to it, and one event loop collects them."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.linux cimport pthread_mutex_t

cdef struct Completion:
    uint64_t tag                # identifies the job to its completion queue
    int progress                # a `dask_fabric.paths.stream.Progress`
    int error                   # errno, if it failed
    size_t moved_bytes
    int64_t busy_ns             # time in system calls that move bytes; 0 if unknown
    int64_t posted_ns

# Allocated before a job starts, so that posting its completion cannot fail.
cdef struct CompletionNode:
    Completion completion
    CompletionNode *next

cdef struct Mailbox:
    int event_fd                # readable while there are completions
    pthread_mutex_t mutex
    CompletionNode *first
    CompletionNode *last

cdef Mailbox *open_mailbox() except NULL
cdef void close_mailbox(Mailbox *mailbox) noexcept nogil
cdef void post(Mailbox *mailbox, CompletionNode *node) noexcept nogil
cdef bint next_completion(Mailbox *mailbox, Completion *completion) noexcept nogil
cdef void forget_all(Mailbox *mailbox) noexcept nogil

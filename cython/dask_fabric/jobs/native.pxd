"""Native threads: starting them, and how many to start."""

from posix.time cimport timespec

ctypedef void *(*ThreadMain)(void *) noexcept nogil

cdef enum:
    THREAD_COUNT_LIMIT = 64

cdef timespec wait_limit() noexcept nogil
cdef int thread_goal() noexcept nogil
cdef int start_thread(ThreadMain main, void *argument) noexcept nogil
cdef void prepare_thread(const char *name) noexcept nogil

"""The UCX worker of a process, its lock, and its progress thread."""

from libc.stdint cimport int64_t

from dask_fabric.linux cimport pthread_cond_t, pthread_mutex_t, pthread_t
from dask_fabric.paths.ucx.libucp cimport Context, WorkerHandle

cdef struct Worker:
    WorkerHandle handle         # NULL until it is started
    Context context
    int event_fd
    char address_mark           # the first byte of every address of this UCX
    bint is_stopping
    bint is_foreign             # this is a forked child: the worker is its parent's
    pthread_mutex_t mutex       # guards UCX and everything of the `ucx` path
    pthread_mutex_t turnstile   # in front of `mutex`: the progress thread cannot starve callers
    pthread_cond_t changed
    pthread_t thread
    # Called in each thread before UCX uses device memory there; NULL without devices.
    int (*bind)(void *argument) noexcept nogil
    void *bind_argument
    bint is_bound               # the progress thread has called it
    # Called by the progress thread between two rounds; True if it did something.
    bint (*attend)() noexcept nogil
    size_t operation_count      # in progress: if not 0, an event is near
    int sleep_limit_ms          # the progress thread sleeps no longer than this; -1 for no limit

cdef Worker worker

cdef bint lock() noexcept nogil
cdef void unlock() noexcept nogil
cdef void unlock_and_wake() noexcept nogil
cdef void await_change() noexcept nogil
cdef bint await_change_until(int64_t until_ns) noexcept nogil
cdef int64_t deadline_ns(int64_t patience_ns) noexcept nogil

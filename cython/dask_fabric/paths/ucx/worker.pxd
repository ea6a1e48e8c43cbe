"""The one UCX worker of a process, its lock, and the thread that makes it progress."""

from libc.stdint cimport int64_t

from dask_fabric.linux cimport pthread_cond_t, pthread_mutex_t, pthread_t
from dask_fabric.paths.ucx.libucp cimport Context, WorkerHandle

cdef struct Worker:
    WorkerHandle handle         # NULL until it is started
    Context context
    int event_fd
    char address_mark           # the first byte of every address of this UCX
    bint is_stopping
    bint is_foreign             # this is a forked child, and it is the parent's
    pthread_mutex_t mutex       # guards UCX and everything of the `ucx` path
    pthread_mutex_t turnstile       # who waits for the mutex holds it: the thread comes last
    pthread_cond_t changed
    pthread_t thread
    # Called in a thread before UCX works with device memory there; NULL where it does not.
    int (*bind)(void *argument) noexcept nogil
    void *bind_argument
    bint is_bound               # the thread below has called it
    # What else the thread does between two rounds of progress; True where there was something.
    bint (*attend)() noexcept nogil
    size_t operation_count      # under way: an event is near
    int sleep_limit_ms          # after which it does so though UCX has nothing new; -1 for never

cdef Worker worker

cdef bint lock() noexcept nogil
cdef void unlock() noexcept nogil
cdef void unlock_and_wake() noexcept nogil
cdef void await_change() noexcept nogil
cdef bint await_change_until(int64_t until_ns) noexcept nogil
cdef int64_t deadline_ns(int64_t patience_ns) noexcept nogil

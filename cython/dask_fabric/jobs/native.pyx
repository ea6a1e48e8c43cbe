"""Native threads: starting them, and how many to start."""

from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from dask_fabric.atomics cimport add_relaxed, relaxed
from dask_fabric.linux cimport (
    SIG_SETMASK, pthread_create, pthread_detach, pthread_self, pthread_setname_np, pthread_sigmask,
    pthread_t, sigfillset, sigset_t,
)

cdef enum:
    CANCEL_NS = 5_000_000       # longest wait of a cancellation for a thread

cdef Py_ssize_t thread_count_goal = 1


def configure(int thread_count):
    """Set the number of native threads of each kind; running threads are not stopped.

    Parameters
    ----------
    thread_count : int
        From 1 to 64.
    """
    if not 1 <= thread_count <= THREAD_COUNT_LIMIT:
        raise ValueError(f"thread_count is {thread_count}: use 1 to {THREAD_COUNT_LIMIT}")
    add_relaxed(&thread_count_goal, thread_count - thread_count_goal)


cdef timespec wait_limit() noexcept nogil:
    """The deadline of a cancellation, which runs in an event loop."""
    cdef timespec until
    clock_gettime(CLOCK_REALTIME, &until)
    until.tv_nsec += CANCEL_NS
    if until.tv_nsec >= 1_000_000_000:
        until.tv_sec += 1
        until.tv_nsec -= 1_000_000_000
    return until


cdef int thread_goal() noexcept nogil:
    return <int> relaxed(&thread_count_goal)


cdef int start_thread(ThreadMain main, void *argument) noexcept nogil:
    """Start a detached thread; 0, or the errno."""
    cdef pthread_t thread
    cdef int error = pthread_create(&thread, NULL, main, argument)
    if error == 0:
        pthread_detach(thread)
    return error


cdef void prepare_thread(const char *name) noexcept nogil:
    """Name the current thread, and block all signals: Python's main thread handles them."""
    cdef sigset_t signals
    sigfillset(&signals)
    pthread_sigmask(SIG_SETMASK, &signals, NULL)
    pthread_setname_np(pthread_self(), name)

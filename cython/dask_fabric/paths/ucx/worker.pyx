"""The UCX worker of a process, its lock, and its progress thread.

Theory of operation
-------------------
A process has one UCX worker. UCX may be called by one thread at a time, so one mutex guards it and
all structures of this path. UCX moves data only while someone calls its *progress* function: a
thread of our own does that (`_thread_main`), and it never takes the GIL.

The thread holds the lock for one round of progress at a time. Between two rounds it calls `attend`,
by which `peers` reports ended operations. A mutex is not fair: the thread could take it again
before a waiting caller does. So everybody first takes a second one, the *turnstile*, and keeps it
while waiting for the lock: the thread then waits there, behind the caller.

If nothing happens, the thread runs some more rounds while operations are in progress. Then it arms
the worker and sleeps on its event fd. A caller that has changed something wakes it
(`unlock_and_wake`). If UCX refuses to arm, because an event is pending or it waits for room at the
peer, the thread retries, then yields the CPU, then naps (`_sleep`).

UCX starts in `_start_alone`, without the GIL for its slow parts. Its settings are environment
variables, set for that time only. The worker is never destroyed: at exit the thread is stopped,
because UCX's own exit handlers must not race with it.

A forked child has the memory of the worker, but no thread, and maybe a lock that nobody releases.
It marks the worker as foreign, never touches it again, and reports an error if UCX is needed.
"""

import atexit
import contextlib
import os
import threading

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport usleep

from dask_fabric.errors import ForkedError, LibraryError, UnavailableError
from dask_fabric.paths.ucx import libucp
from dask_fabric.paths.ucx.library import environment

from dask_fabric.linux cimport (
    POLLIN, SIG_SETMASK, poll, pollfd, sched_yield, pthread_cond_broadcast, pthread_cond_init,
    pthread_cond_timedwait, pthread_cond_wait, pthread_create, pthread_join, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock, pthread_self, pthread_setname_np, pthread_sigmask,
    sigfillset, sigset_t,
)
from dask_fabric.paths.ucx.libucp cimport (
    ERROR_BUSY, FEATURE_AM, FEATURE_WAKEUP, OK, PARAM_FIELD_ESTIMATED_NUM_EPS,
    PARAM_FIELD_FEATURES, THREAD_MODE_SERIALIZED, WORKER_ATTR_FIELD_ADDRESS,
    WORKER_PARAM_FIELD_THREAD_MODE, Config, ContextParams, Status, WorkerAttributes, WorkerParams,
    check, ucp,
)

cdef enum:
    # Some microseconds, in which the next fragment usually arrives; a sleep costs 20 microseconds.
    ROUNDS_BEFORE_SLEEP = 100
    RETRY_MICROSECONDS = 1000
    RETRIES_BEFORE_YIELD = 20   # enough for events that arrived between progress and sleep
    YIELDS_BEFORE_NAP = 200     # some milliseconds, in which a peer usually makes room

_starting = threading.Lock()    # UCX takes its settings from the process's environment
_is_ending = False
_END_SECONDS = 10.0     # longest wait at exit for a start in progress
_address = b""
_library_path = ""


def start(library, options=(), defaults=None, estimated_endpoints=64):
    """Start only the worker. Call `dask_fabric.paths.ucx.core.start` instead."""
    with _starting:
        if _is_ending:
            raise UnavailableError("the process is exiting")
        _start_alone(library, options, defaults, estimated_endpoints)


def _start_alone(library, options, defaults, estimated_endpoints):
    global _library_path
    _refuse_forked()
    if worker.handle != NULL:
        if library.path != _library_path:
            raise UnavailableError(f"UCX runs already, from {_library_path}, not {library.path}")
        return
    # Environment variables reach all settings in each version of UCX; its functions do not. They
    # are removed once UCX has read them, so that child processes do not inherit them. UCX starts
    # without the GIL: that takes tens of milliseconds, which must not block an event loop.
    with _set_for_now(environment(options, library.version, defaults)):
        libucp.open_library(library.path)
        _create(estimated_endpoints)
    _library_path = library.path


def bind(size_t function, size_t argument):
    """Set a C function to call in each thread before UCX uses device memory there.

    Up to 1.19 UCX uses the device context that is current in the thread; it has no setting for it.

    Parameters
    ----------
    function, argument : int
        Addresses of an ``int function(void *argument)``, which needs no GIL and returns 0, and of
        its argument: CUDA's ``cuCtxSetCurrent`` and a context. 0 and 0 for none.
    """
    with nogil:
        lock()
        worker.bind = <int (*)(void *) noexcept nogil> function
        worker.bind_argument = <void *> argument
        worker.is_bound = False
        unlock_and_wake()


def is_running():
    """Whether the worker runs, and belongs to this process (not to the parent of a fork)."""
    return worker.handle != NULL and not worker.is_foreign


def address():
    """Return the address of the worker, which a peer needs to open an endpoint.

    Returns
    -------
    bytes
    """
    _refuse_forked()
    if worker.handle == NULL:
        raise UnavailableError("UCX does not run in this process")
    return _address


@contextlib.contextmanager
def _set_for_now(variables):
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


def _create(size_t estimated_endpoints):
    global _address
    cdef WorkerAttributes attributes
    cdef WorkerParams params
    cdef WorkerHandle handle = NULL
    cdef Status status
    memset(&attributes, 0, sizeof(attributes))
    memset(&params, 0, sizeof(params))
    params.field_mask = WORKER_PARAM_FIELD_THREAD_MODE
    params.thread_mode = THREAD_MODE_SERIALIZED
    if worker.bind != NULL and worker.bind(worker.bind_argument) != 0:
        raise LibraryError("the context of the device cannot be made current for UCX", -1)
    _create_context(estimated_endpoints)
    try:
        with nogil:
            status = ucp.worker_create(worker.context, &params, &handle)
        check(status, "ucp_worker_create")
        check(ucp.worker_get_efd(handle, &worker.event_fd), "ucp_worker_get_efd")
        attributes.field_mask = WORKER_ATTR_FIELD_ADDRESS
        check(ucp.worker_query(handle, &attributes), "ucp_worker_query")
        _address = (<char *> attributes.address)[: attributes.address_length]
        worker.address_mark = (<char *> attributes.address)[0]
        ucp.worker_release_address(handle, attributes.address)
        _publish(handle)
    except BaseException:
        _destroy(handle)
        raise


cdef int _publish(WorkerHandle handle) except -1:
    """Make the worker visible to all threads, and start the progress thread."""
    cdef bint begun
    with nogil:
        _take_lock()
        worker.handle = handle
        begun = pthread_create(&worker.thread, NULL, _thread_main, NULL) == 0
        if not begun:
            worker.handle = NULL
        unlock()
    if not begun:
        raise OSError("no thread for UCX: is the limit of processes (ulimit -u) reached?")
    return 0


def _create_context(size_t estimated_endpoints):
    cdef ContextParams params
    cdef Config config = NULL
    cdef Status status
    cdef unsigned int version_major, version_minor
    version_major, version_minor, _ = libucp.version()
    memset(&params, 0, sizeof(params))
    params.field_mask = PARAM_FIELD_FEATURES | PARAM_FIELD_ESTIMATED_NUM_EPS
    params.features = FEATURE_AM | FEATURE_WAKEUP
    params.estimated_num_eps = estimated_endpoints
    check(ucp.config_read(NULL, NULL, &config), "ucp_config_read")
    with nogil:
        status = ucp.init_version(version_major, version_minor, &params, config, &worker.context)
    ucp.config_release(config)
    check(status, "ucp_init")


cdef void _destroy(WorkerHandle handle) noexcept nogil:
    if handle != NULL:
        ucp.worker_destroy(handle)
    ucp.cleanup(worker.context)
    worker.context = NULL


def _stop():
    """At exit: stop the progress thread, because UCX's own exit handlers must not race with it."""
    global _is_ending
    _is_ending = True
    if _starting.acquire(timeout=_END_SECONDS):
        _starting.release()
    if worker.handle == NULL or worker.is_foreign:
        return
    with nogil:
        lock()
        worker.is_stopping = True
        unlock_and_wake()
        pthread_join(worker.thread, NULL)
        # The worker is not destroyed: peers notice the end, and the process frees the memory.


def _refuse_forked():
    if worker.is_foreign:
        raise ForkedError(
            "UCX belongs to the parent of this forked process and cannot be used here: start "
            "processes by spawn or forkserver instead of fork"
        )


def _after_fork_in_child():
    # The parent's threads may hold the worker's locks: never touch the worker again.
    global _starting
    if worker.handle != NULL or _starting.locked():
        worker.is_foreign = True
    _starting = threading.Lock()


atexit.register(_stop)
memset(&worker, 0, sizeof(worker))
worker.sleep_limit_ms = -1
pthread_mutex_init(&worker.mutex, NULL)
pthread_mutex_init(&worker.turnstile, NULL)
pthread_cond_init(&worker.changed, NULL)
os.register_at_fork(after_in_child=_after_fork_in_child)


# ---------------------------------------------------------------- the lock

cdef bint lock() noexcept nogil:
    """Take the lock; True if the worker may be used. Call `unlock` in any case."""
    if worker.is_foreign:
        return False
    _take_lock()
    return worker.handle != NULL and not worker.is_stopping


cdef void unlock() noexcept nogil:
    if not worker.is_foreign:
        pthread_mutex_unlock(&worker.mutex)


cdef void unlock_and_wake() noexcept nogil:
    """Release the lock, after a change that the progress thread must notice.

    Without a signal after each posted request, messages can be stuck for ever.
    """
    if worker.is_foreign:
        return
    if worker.handle != NULL:
        ucp.worker_signal(worker.handle)
    pthread_mutex_unlock(&worker.mutex)


cdef void await_change() noexcept nogil:
    """Release the lock until the progress thread has ended an operation."""
    pthread_cond_wait(&worker.changed, &worker.mutex)


cdef int64_t deadline_ns(int64_t patience_ns) noexcept nogil:
    """The time `patience_ns` from now, for `await_change_until`."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec + patience_ns


cdef bint await_change_until(int64_t until_ns) noexcept nogil:
    """As `await_change`; False after a timeout."""
    cdef timespec until
    until.tv_sec = until_ns // 1_000_000_000
    until.tv_nsec = until_ns % 1_000_000_000
    return pthread_cond_timedwait(&worker.changed, &worker.mutex, &until) == 0


cdef void _take_lock() noexcept nogil:
    pthread_mutex_lock(&worker.turnstile)
    pthread_mutex_lock(&worker.mutex)
    pthread_mutex_unlock(&worker.turnstile)


# ---------------------------------------------------------------- the thread

cdef void *_thread_main(void *argument) noexcept nogil:
    cdef sigset_t signals
    cdef int idle_rounds = 0, yields = 0
    sigfillset(&signals)        # signals are for Python's main thread
    pthread_sigmask(SIG_SETMASK, &signals, NULL)
    pthread_setname_np(pthread_self(), b"fabric-ucx")
    _take_lock()
    while not worker.is_stopping:
        if _advance():
            idle_rounds = yields = 0
        elif (
            worker.operation_count and idle_rounds < ROUNDS_BEFORE_SLEEP
            and yields < YIELDS_BEFORE_NAP
        ):
            idle_rounds += 1
        else:
            idle_rounds = 0
            yields = _sleep(yields)
            continue
        pthread_mutex_unlock(&worker.mutex)
        _take_lock()
    pthread_cond_broadcast(&worker.changed)
    pthread_mutex_unlock(&worker.mutex)
    return NULL


cdef bint _advance() noexcept nogil:
    """Run one round of progress; True if anything happened."""
    if worker.bind != NULL and not worker.is_bound:
        worker.is_bound = True
        worker.bind(worker.bind_argument)
    cdef bint moved = ucp.worker_progress(worker.handle) != 0
    return (worker.attend != NULL and worker.attend()) or moved


cdef int _sleep(int yields) noexcept nogil:
    """Wait for an event of UCX, unless one is pending.

    If UCX waits for room at the peer, no event may announce it: spin, then yield the CPU, and in
    the end, since the peer may be stopped, sleep. Returns the number of such rounds in a row.
    """
    cdef pollfd watched = pollfd(worker.event_fd, POLLIN, 0)
    cdef Status status = ucp.worker_arm(worker.handle)
    cdef int limit_ms = worker.sleep_limit_ms
    pthread_mutex_unlock(&worker.mutex)
    if status == OK:
        poll(&watched, 1, limit_ms)
    elif status == ERROR_BUSY and yields < YIELDS_BEFORE_NAP:
        if yields >= RETRIES_BEFORE_YIELD:
            sched_yield()
    else:                       # the event fd stays readable: do not poll it
        usleep(RETRY_MICROSECONDS)
    _take_lock()
    return min(yields + 1, <int> YIELDS_BEFORE_NAP) if status == ERROR_BUSY else 0

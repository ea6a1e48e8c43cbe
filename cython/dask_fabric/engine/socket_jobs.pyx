"""Jobs of native threads that move bytes through sockets, without the GIL.

Theory of operation
-------------------
The problem: thousands of sockets, large messages, and threads that must never block on one peer.
Each direction has one epoll set and a few threads that wait on it. A job is one transfer through
one socket. While it waits, its socket is in the set, one-shot: epoll hands a socket that can move
bytes to exactly one thread. The thread moves at most `SLICE_BYTES`, then watches the socket again,
so that many jobs share the threads.

A job (`NativeJob`) is FREE, WAITING for its socket, or RUNNING in a thread. Threads hold no GIL and
touch no Python object. They know a job by its name, an integer: the slot in the lower half and a
generation in the upper. A late event of an ended job finds no job of that name, and is ignored.

Completion: the thread removes the socket from the set, posts a `Completion` to the job's mailbox,
and frees the slot. The completion queue of the event loop calls the owner (`jobs.completions`).

Cancellation waits until no thread runs the job. Receiving threads write to our own memory, so that
wait is short and has no limit. A sending thread may be stuck on a page that is slow to read (swap,
a file on a network): after a few milliseconds the job is *abandoned*. Its memory and socket stay in
use, in quarantine, until the thread returns and frees the slot. Meanwhile an extra thread stands in
for it (`_thread_goal_of`), and exits when the stuck one is back.

The receiving threads also trim the buffer pool when they time out.
"""

import os

cimport cython
from libc.errno cimport EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from posix.time cimport timespec

from dask_fabric.atomics cimport add_relaxed, relaxed
from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport Job
from dask_fabric.jobs.mailbox cimport Completion, CompletionNode, Mailbox, post
from dask_fabric.jobs.native cimport (
    THREAD_COUNT_LIMIT, prepare_thread, start_thread, thread_goal, wait_limit,
)
from dask_fabric.linux cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    close, epoll_create1, epoll_ctl, epoll_event, epoll_wait, iovec, pthread_cond_broadcast,
    pthread_cond_init, pthread_cond_t, pthread_cond_timedwait, pthread_cond_wait,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.memory.pool cimport has_idle_memory, trim_idle
from dask_fabric.paths.openssl cimport TLSSession
from dask_fabric.paths.stream cimport (
    BLOCKED, FAILED, RECEIVE, SEND, UNFINISHED, Direction, Progress, SocketTransfer, advance,
    new_transfer, raise_low_water, reset_low_water,
)

cdef enum:
    SLICE_BYTES = 4 << 20       # moved per turn of a job: some milliseconds
    STUCK_NS = 1_000_000_000    # a thread this long in a slice waits for a page of its source
    TRIM_INTERVAL_MS = 1000
    IDLE_INTERVAL_MS = 10_000

cdef enum JobState:
    FREE = 0
    WAITING = 1                 # for its socket
    RUNNING = 2                 # in a thread

cdef struct NativeJob:
    JobState state
    bint cancelled
    bint abandoned              # cancelled while a thread is stuck in its slice
    uint64_t name
    uint64_t tag
    SocketTransfer transfer
    int64_t begin_ns            # of the slice
    int64_t busy_ns             # in slices, without waiting for the socket
    iovec *vectors              # owned; transfer.vectors points into it
    Mailbox *mailbox
    CompletionNode *node        # owned until it is posted

cdef struct Engine:
    pthread_mutex_t mutex       # guards everything below and every job's state
    pthread_cond_t stopped_running
    int epolls[2]               # by direction
    Py_ssize_t thread_counts[2]     # these two are read without the mutex, as atomics
    Py_ssize_t running_counts[2]    # of jobs
    NativeJob **jobs            # by slot; reused, never freed
    uint32_t slot_count
    uint32_t *free_slots
    uint32_t free_count

cdef Engine engine


cdef void _reset() noexcept nogil:
    """Initialize the engine, also in a forked child: its parent's jobs and threads are not there.
    """
    memset(&engine, 0, sizeof(engine))
    pthread_mutex_init(&engine.mutex, NULL)
    pthread_cond_init(&engine.stopped_running, NULL)
    engine.epolls[0] = engine.epolls[1] = -1


def _after_fork_in_child():
    for epoll in engine.epolls:
        if epoll >= 0:
            close(epoll)
    _reset()


_reset()
os.register_at_fork(after_in_child=_after_fork_in_child)


def statistics():
    """Count the threads and jobs of this process's engine.

    Returns
    -------
    dict
        ``receive_thread_count``, ``send_thread_count`` and ``job_count`` (in flight).
    """
    pthread_mutex_lock(&engine.mutex)
    counts = {
        "receive_thread_count": engine.thread_counts[<int> RECEIVE],
        "send_thread_count": engine.thread_counts[<int> SEND],
        "job_count": engine.slot_count - engine.free_count,
    }
    pthread_mutex_unlock(&engine.mutex)
    return counts


# ---------------------------------------------------------------- jobs

cdef int start() except -1:
    """Start at least one receiving thread: it also trims the buffer pool, which comms without jobs
    fill too."""
    return _ensure_threads(RECEIVE)


@cython.auto_pickle(False)
@cython.final
cdef class SocketJob(Job):
    """Moves the bytes of some vectors through one socket."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        return _submit(
            mailbox, self.tag, self.fd, self.tls, self.direction, self.vectors, self.vector_count
        )

    cdef bint _end(self) noexcept:
        """True if a thread is stuck on slow memory: it still uses the memory and the socket."""
        cdef bint is_stuck
        with nogil:
            is_stuck = _cancel(self.name)
        return is_stuck

    cdef bint _is_in_use(self) except -1:
        return _is_moving(self.name)

    cdef size_t moved_bytes(self) noexcept:
        """The bytes moved so far; 0 once it has ended."""
        return _moved_bytes(self.name)


cdef SocketJob new_socket_job(
    object sock, int fd, TLSSession *tls, Direction direction, iovec *vectors, size_t vector_count
):
    """Make a job for these vectors, which are copied when it begins.

    Their memory, and the TLS session if there is one, must live until the job has ended or was
    cancelled.
    """
    cdef SocketJob job = SocketJob.__new__(SocketJob)
    job.kept = sock
    job.fd = fd
    job.tls = tls
    job.direction = direction
    job.vectors = vectors
    job.vector_count = vector_count
    job.begin_ns = now_ns()
    return job


cdef uint64_t _submit(
    Mailbox *mailbox, uint64_t tag, int fd, TLSSession *tls, Direction direction,
    const iovec *vectors, size_t vector_count
) except 0:
    cdef uint64_t name = 0
    cdef NativeJob *job
    cdef int error = ENOMEM
    cdef iovec *copies
    cdef CompletionNode *node
    _ensure_threads(direction)
    copies = <iovec *> malloc(vector_count * sizeof(iovec))
    node = <CompletionNode *> malloc(sizeof(CompletionNode))
    if copies == NULL or node == NULL:
        free(copies)
        free(node)
        raise MemoryError()
    memcpy(copies, vectors, vector_count * sizeof(iovec))
    pthread_mutex_lock(&engine.mutex)
    job = _take_job()
    if job != NULL:
        name = job.name
        job.vectors = copies
        job.node = node
        job.transfer = new_transfer(fd, tls, direction, copies, vector_count)
        job.mailbox = mailbox
        job.tag = tag
        job.busy_ns = 0
        error = 0 if _watch(EPOLL_CTL_ADD, job) == 0 else errno
        if error:
            _free_job(job)
    else:
        free(copies)
        free(node)
    pthread_mutex_unlock(&engine.mutex)
    if error:
        raise OSError(error, f"the engine cannot start a transfer: {os.strerror(error)}")
    return name


cdef bint _cancel(uint64_t name) noexcept nogil:
    """Cancel a job, unless it has ended.

    Returns
    -------
    bool
        Whether a thread still uses its memory and socket, because a page is slow to read. Both must
        live until `_is_moving` is false.
    """
    cdef NativeJob *job
    cdef bint is_over = False, is_stuck = False
    cdef timespec until = wait_limit()
    pthread_mutex_lock(&engine.mutex)
    job = _find_job(name)
    if job != NULL:
        job.cancelled = True
        while job.state == RUNNING and not is_over:
            if job.transfer.direction == RECEIVE:   # writes to our own memory are never slow
                pthread_cond_wait(&engine.stopped_running, &engine.mutex)
            else:
                is_over = pthread_cond_timedwait(
                    &engine.stopped_running, &engine.mutex, &until
                ) != 0
        is_stuck = job.abandoned = job.state == RUNNING
        if not is_stuck:
            _unwatch(job)
            _free_job(job)
    pthread_mutex_unlock(&engine.mutex)
    return is_stuck


cdef bint _is_moving(uint64_t name) noexcept nogil:
    """Whether a thread is stuck in a slice of a cancelled job."""
    cdef NativeJob *job
    pthread_mutex_lock(&engine.mutex)
    job = _find_job(name)
    pthread_mutex_unlock(&engine.mutex)
    return job != NULL


cdef size_t _moved_bytes(uint64_t name) noexcept nogil:
    """The bytes that a job has moved so far; 0 once it has ended."""
    cdef NativeJob *job
    cdef size_t nbytes = 0
    pthread_mutex_lock(&engine.mutex)
    job = _find_job(name)
    if job != NULL:
        nbytes = relaxed(<Py_ssize_t *> &job.transfer.moved_bytes)
    pthread_mutex_unlock(&engine.mutex)
    return nbytes


cdef NativeJob *_take_job() noexcept nogil:
    cdef NativeJob *job
    if engine.free_count == 0 and not _grow():
        return NULL
    engine.free_count -= 1
    job = engine.jobs[engine.free_slots[engine.free_count]]
    job.name += <uint64_t> 1 << 32
    if job.name >> 32 == 0:     # 0 is not a valid name
        job.name += <uint64_t> 1 << 32
    job.cancelled = job.abandoned = False
    job.state = WAITING
    return job


cdef bint _grow() noexcept nogil:
    """Double the slots; False if memory is short."""
    cdef uint32_t capacity = max(<uint32_t> 64, 2 * engine.slot_count)
    cdef NativeJob **jobs = <NativeJob **> realloc(engine.jobs, capacity * sizeof(NativeJob *))
    cdef uint32_t *free_slots
    cdef NativeJob *job
    if jobs == NULL:
        return False
    engine.jobs = jobs
    free_slots = <uint32_t *> realloc(engine.free_slots, capacity * sizeof(uint32_t))
    if free_slots == NULL:
        return False
    engine.free_slots = free_slots
    while engine.slot_count < capacity:
        job = <NativeJob *> calloc(1, sizeof(NativeJob))
        if job == NULL:
            break
        job.name = engine.slot_count
        jobs[engine.slot_count] = job
        free_slots[engine.free_count] = engine.slot_count
        engine.free_count += 1
        engine.slot_count += 1
    return engine.free_count > 0


cdef NativeJob *_find_job(uint64_t name) noexcept nogil:
    """The job of that name, unless it has ended."""
    cdef uint32_t slot = <uint32_t> name
    if slot >= engine.slot_count:
        return NULL
    cdef NativeJob *job = engine.jobs[slot]
    if job.name != name or job.state == FREE:
        return NULL
    return job


cdef void _free_job(NativeJob *job) noexcept nogil:
    free(job.vectors)
    free(job.node)
    job.vectors = NULL
    job.node = NULL
    job.state = FREE
    engine.free_slots[engine.free_count] = <uint32_t> job.name
    engine.free_count += 1


cdef int _watch(int operation, NativeJob *job) noexcept nogil:
    cdef epoll_event event
    raise_low_water(&job.transfer)
    event.events = EPOLLONESHOT | (EPOLLIN if job.transfer.direction == RECEIVE else EPOLLOUT)
    event.data.u64 = job.name
    return epoll_ctl(
        engine.epolls[<int> job.transfer.direction], operation, job.transfer.fd, &event
    )


cdef void _unwatch(NativeJob *job) noexcept nogil:
    reset_low_water(&job.transfer)
    epoll_ctl(engine.epolls[<int> job.transfer.direction], EPOLL_CTL_DEL, job.transfer.fd, NULL)


# ---------------------------------------------------------------- threads

cdef int _ensure_threads(Direction direction) except -1:
    cdef int failed = 0
    pthread_mutex_lock(&engine.mutex)
    if engine.epolls[<int> direction] < 0:
        engine.epolls[<int> direction] = epoll_create1(EPOLL_CLOEXEC)
    while not failed and engine.thread_counts[<int> direction] < _thread_goal_of(direction):
        failed = start_thread(_thread_main, <void *> <size_t> direction)
        if not failed:
            add_relaxed(&engine.thread_counts[<int> direction], 1)
    failed = engine.thread_counts[<int> direction] == 0 or engine.epolls[<int> direction] < 0
    pthread_mutex_unlock(&engine.mutex)
    if failed:
        raise OSError(
            "dask-fabric cannot start its native threads: is the limit of processes (ulimit -u) "
            "or of open files (ulimit -n) reached?"
        )
    return 0


cdef void _replace_stuck(Direction direction) noexcept nogil:
    """Start a thread for each stuck one: jobs may wait, and only a new job would start a thread."""
    pthread_mutex_lock(&engine.mutex)
    while (
        0 < engine.thread_counts[<int> direction] < _thread_goal_of(direction)
        and start_thread(_thread_main, <void *> <size_t> direction) == 0
    ):
        add_relaxed(&engine.thread_counts[<int> direction], 1)
    pthread_mutex_unlock(&engine.mutex)


cdef int _thread_goal_of(Direction direction) noexcept nogil:
    """The configured number of threads, plus one for each stuck thread."""
    cdef int count = thread_goal()
    cdef int64_t stuck_since_ns = now_ns() - STUCK_NS
    cdef NativeJob *job
    cdef uint32_t slot
    if engine.running_counts[<int> direction] < engine.thread_counts[<int> direction]:
        return count            # nearly always
    for slot in range(engine.slot_count):
        job = engine.jobs[slot]
        count += (
            job.state == RUNNING and job.transfer.direction == direction
            and job.begin_ns < stuck_since_ns
        )
    return min(count, THREAD_COUNT_LIMIT)


cdef bint _is_surplus(Direction direction) noexcept nogil:
    """Whether this thread should exit: it stood in for a thread that is not stuck any more."""
    cdef bint surplus
    if relaxed(&engine.thread_counts[<int> direction]) <= thread_goal():
        return False            # nearly always, and then without the mutex
    pthread_mutex_lock(&engine.mutex)
    surplus = engine.thread_counts[<int> direction] > _thread_goal_of(direction)
    pthread_mutex_unlock(&engine.mutex)
    return surplus


cdef void *_thread_main(void *argument) noexcept nogil:
    cdef Direction direction = <Direction> <size_t> argument
    cdef epoll_event event
    cdef int ready
    prepare_thread(b"fabric-receive" if direction == RECEIVE else b"fabric-send")
    while True:
        ready = epoll_wait(engine.epolls[<int> direction], &event, 1, _timeout_ms(direction))
        if ready > 0:
            _run(event.data.u64)
            if _is_surplus(direction):
                break
        elif ready == 0:
            trim_idle()
            _replace_stuck(SEND)
        elif errno != EINTR:
            break
    pthread_mutex_lock(&engine.mutex)
    add_relaxed(&engine.thread_counts[<int> direction], -1)
    pthread_mutex_unlock(&engine.mutex)
    return NULL


cdef int _timeout_ms(Direction direction) noexcept nogil:
    """The time until the next trim of the pool, by a receiving thread; -1 for none.

    An empty pool is checked too, less often: comms without jobs fill it.
    """
    if direction == SEND:
        return -1
    if relaxed(&engine.running_counts[<int> SEND]) > 0:
        return TRIM_INTERVAL_MS     # a sending thread may be stuck: see `_replace_stuck`
    return TRIM_INTERVAL_MS if has_idle_memory() else IDLE_INTERVAL_MS


cdef void _run(uint64_t name) noexcept nogil:
    """Run one slice of a job. Then watch its socket again, or post its completion."""
    cdef NativeJob *job
    cdef Progress progress
    pthread_mutex_lock(&engine.mutex)
    job = _find_job(name)
    if job == NULL or job.cancelled:
        pthread_mutex_unlock(&engine.mutex)
        return
    job.state = RUNNING
    job.begin_ns = now_ns()
    add_relaxed(&engine.running_counts[<int> job.transfer.direction], 1)
    pthread_mutex_unlock(&engine.mutex)

    progress = advance(&job.transfer, SLICE_BYTES)
    job.busy_ns += now_ns() - job.begin_ns

    pthread_mutex_lock(&engine.mutex)
    add_relaxed(&engine.running_counts[<int> job.transfer.direction], -1)
    job.state = WAITING
    if job.abandoned:
        _unwatch(job)
        _free_job(job)
    elif job.cancelled:
        pthread_cond_broadcast(&engine.stopped_running)
    elif progress != BLOCKED and progress != UNFINISHED:
        _end(job, progress)
    elif _watch(EPOLL_CTL_MOD, job) != 0:
        job.transfer.error = errno
        _end(job, FAILED)
    pthread_mutex_unlock(&engine.mutex)


cdef void _end(NativeJob *job, Progress progress) noexcept nogil:
    cdef CompletionNode *node = job.node
    _unwatch(job)
    node.completion = Completion(
        job.tag, progress, job.transfer.error, job.transfer.moved_bytes, job.busy_ns, 0
    )
    job.node = NULL
    post(job.mailbox, node)
    _free_job(job)

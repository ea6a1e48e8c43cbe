"""Copies out of the memory of other processes, by native threads.

Theory of operation
-------------------
A job (`NativeJob`) is all that one transfer fetches from one process. All jobs that have not ended
are in one list. A thread takes the next slice of `SLICE_BYTES` from the first job that has work,
moves that job to the end of the list, and copies the slice without the mutex. So jobs share the
threads fairly, and a single job is copied by all of them. Very large jobs may use twice as many
threads, at the cost of more CPU time.

The problem: a page of another process may be slow to read (swapped out, or of a file on a network)
or may never arrive. The thread that reads it is stuck in the kernel and cannot be interrupted. A
thread longer than `STUCK_NS` in one slice counts as stuck. Three measures follow:

* `tend_copies`, called from the loop while a job runs, starts a thread for each stuck one. Surplus
  threads exit when the stuck ones are back.
* While a thread is stuck in a job, no other thread begins a slice of it: it would get stuck too.
* `_cancel` waits a few milliseconds for the running slices. If a thread is stuck, the job moves to
  the list of abandoned jobs and its memory goes to quarantine. The thread frees the job when it
  returns.

When all slices are copied, one thread reads the peer's secret again, if the connection has one
(`check_seal`). A job ends when no slice of it runs, and it has no work left or an error. Its
completion goes to the mailbox of its event loop (`jobs.completions`).
"""

import os

cimport cython
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from posix.time cimport timespec

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport Job
from dask_fabric.jobs.mailbox cimport Completion, CompletionNode, Mailbox, post
from dask_fabric.jobs.native cimport (
    THREAD_COUNT_LIMIT, prepare_thread, start_thread, thread_goal, wait_limit,
)
from dask_fabric.linux cimport (
    pthread_cond_broadcast, pthread_cond_init, pthread_cond_t, pthread_cond_timedwait,
    pthread_cond_wait,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.memory.files cimport make_huge_pages
from dask_fabric.paths.cma.process cimport Seal, address_of, check_seal, read_memory
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.frames cimport FrameSet, Slot

cdef enum:
    SLICE_BYTES = 4 << 20
    VERY_LARGE_BYTES = 128 << 20    # a copy of this size takes more than 10 ms
    STUCK_NS = 100_000_000          # for one slice: a hundred times the usual

cdef struct NativeJob:
    uint64_t name
    uint64_t tag
    int pid
    Slot *slots                 # owned
    size_t slot_count
    size_t index                # slot of the next slice,
    uint64_t offset             # and where it begins there
    Seal seal
    bint must_check             # the seal is to be read, after the last slice
    bint is_very_large
    int running_count           # slices being copied now
    bint cancelled
    int error
    size_t moved_bytes
    Mailbox *mailbox
    CompletionNode *node        # owned until it is posted
    NativeJob *next

cdef struct Thread:
    bint exists
    int64_t since_ns            # when it began its slice; 0 between slices
    NativeJob *job              # of that slice

cdef struct Engine:
    pthread_mutex_t mutex       # guards everything below, and every job
    pthread_cond_t work
    pthread_cond_t stopped_running
    NativeJob *first            # jobs that have not ended, in the order of their turns
    NativeJob *abandoned        # cancelled jobs in whose slices threads are stuck
    uint64_t job_count          # jobs so far, for their names
    int thread_count
    Thread threads[THREAD_COUNT_LIMIT]

cdef Engine engine


def _reset():
    """Initialize the engine, also in a forked child: its parent's jobs and threads are not there.
    """
    memset(&engine, 0, sizeof(engine))
    pthread_mutex_init(&engine.mutex, NULL)
    pthread_cond_init(&engine.work, NULL)
    pthread_cond_init(&engine.stopped_running, NULL)


_reset()
os.register_at_fork(after_in_child=_reset)


def statistics():
    """Count the threads and jobs that copy out of other processes.

    Returns
    -------
    dict
        ``thread_count`` and ``job_count`` (in flight); ``stuck_count``: threads that wait for a
        page of another process.
    """
    cdef int job_count = 0, stuck_count
    cdef NativeJob *job
    pthread_mutex_lock(&engine.mutex)
    job = engine.first
    while job != NULL:
        job_count += 1
        job = job.next
    stuck_count = _stuck_count()
    pthread_mutex_unlock(&engine.mutex)
    return {
        "thread_count": engine.thread_count, "job_count": job_count, "stuck_count": stuck_count,
    }


@cython.auto_pickle(False)
@cython.final
cdef class CopyJob(Job):
    """Copies the frames of one transfer out of one process."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        return _submit(mailbox, self.tag, self.pid, self.frames, &self.seal)

    cdef bint _end(self) noexcept:
        cdef bint is_stuck
        with nogil:
            is_stuck = _cancel(self.name)
        return is_stuck

    cdef bint _is_in_use(self) except -1:
        return _is_copying(self.name)


cdef CopyJob new_copy_job(int pid, FrameSet frames, const Seal *seal):
    """Make a job for frames that have memory; it keeps them alive until its end.

    Its error is REVOKED if the peer has ended the connection meanwhile.
    """
    cdef CopyJob job = CopyJob.__new__(CopyJob)
    job.pid = pid
    job.frames = frames
    job.seal = seal[0]
    return job


cdef uint64_t _submit(
    Mailbox *mailbox, uint64_t tag, int pid, FrameSet frames, const Seal *seal
) except 0:
    cdef NativeJob *job = <NativeJob *> calloc(1, sizeof(NativeJob))
    cdef uint64_t name
    if job != NULL:
        job.slots = <Slot *> malloc(frames.count * sizeof(Slot))
        job.node = <CompletionNode *> malloc(sizeof(CompletionNode))
    if job == NULL or job.slots == NULL or job.node == NULL:
        _free(job)
        raise MemoryError()
    memcpy(job.slots, frames.slots, frames.count * sizeof(Slot))
    job.slot_count = frames.count
    job.is_very_large = frames.nbytes >= VERY_LARGE_BYTES
    job.tag = tag
    job.pid = pid
    job.seal = seal[0]
    job.must_check = seal.address != 0
    job.mailbox = mailbox
    pthread_mutex_lock(&engine.mutex)
    _start_threads(_goal_for(job))
    if engine.thread_count == 0:
        pthread_mutex_unlock(&engine.mutex)
        _free(job)
        raise OSError("dask-fabric cannot start its native threads: is ulimit -u reached?")
    engine.job_count += 1
    job.name = name = engine.job_count
    _append(job)
    pthread_cond_broadcast(&engine.work)
    pthread_mutex_unlock(&engine.mutex)
    return name


cdef bint _cancel(uint64_t name) noexcept nogil:
    """Cancel a job, unless it has ended; True if a thread may still write to its memory."""
    cdef NativeJob *job
    cdef bint is_stuck = False
    cdef timespec until = wait_limit()
    pthread_mutex_lock(&engine.mutex)
    job = engine.first
    while job != NULL and job.name != name:
        job = job.next
    if job != NULL:
        job.cancelled = True
        while job.running_count > 0 and pthread_cond_timedwait(
            &engine.stopped_running, &engine.mutex, &until
        ) == 0:
            pass
        is_stuck = job.running_count > 0
        _remove(&engine.first, job)
        if is_stuck:
            job.next = engine.abandoned
            engine.abandoned = job
        else:
            _free(job)
    pthread_mutex_unlock(&engine.mutex)
    return is_stuck


cdef int64_t tend_copies(uint64_t name) noexcept nogil:
    """Start threads in place of stuck ones; return the bytes that a job has moved, -1 if it ended.
    """
    cdef NativeJob *job
    cdef int64_t moved_bytes = -1
    pthread_mutex_lock(&engine.mutex)
    job = engine.first
    while job != NULL and job.name != name:
        job = job.next
    if job != NULL:
        moved_bytes = job.moved_bytes
        if _stuck_count():
            _start_threads(_goal_for(job))
            pthread_cond_broadcast(&engine.work)
    pthread_mutex_unlock(&engine.mutex)
    return moved_bytes


cdef bint _is_copying(uint64_t name) noexcept nogil:
    """Whether threads are stuck in slices of a cancelled job."""
    cdef NativeJob *job
    pthread_mutex_lock(&engine.mutex)
    job = engine.abandoned
    while job != NULL and job.name != name:
        job = job.next
    pthread_mutex_unlock(&engine.mutex)
    return job != NULL


cdef int _stuck_count() noexcept nogil:
    cdef int index, count = 0
    cdef int64_t stuck_since_ns = now_ns() - STUCK_NS
    for index in range(THREAD_COUNT_LIMIT):
        count += 0 < engine.threads[index].since_ns < stuck_since_ns
    return count


cdef bint _is_stuck(NativeJob *job) noexcept nogil:
    """Whether a thread is stuck in a slice of the job: another thread would get stuck too."""
    cdef int index
    cdef int64_t stuck_since_ns = now_ns() - STUCK_NS
    if job.running_count == 0:
        return False
    for index in range(THREAD_COUNT_LIMIT):
        if engine.threads[index].job == job and 0 < engine.threads[index].since_ns < stuck_since_ns:
            return True
    return False


cdef int _running_count() noexcept nogil:
    """The threads that copy for jobs of usual size and are not stuck."""
    cdef int index, count = 0
    cdef int64_t stuck_since_ns = now_ns() - STUCK_NS
    for index in range(THREAD_COUNT_LIMIT):
        count += (
            engine.threads[index].since_ns >= stuck_since_ns
            and not engine.threads[index].job.is_very_large
        )
    return count


cdef void _start_threads(int goal) noexcept nogil:
    """Start threads until `goal` of them are not stuck, within the limit."""
    cdef uintptr_t index = 0
    cdef int missing_count = goal + _stuck_count() - engine.thread_count
    while missing_count > 0 and index < THREAD_COUNT_LIMIT:
        if not engine.threads[index].exists:
            if start_thread(_thread_main, <void *> index):
                return
            engine.threads[index].exists = True
            engine.thread_count += 1
            missing_count -= 1
        index += 1


cdef void *_thread_main(void *argument) noexcept nogil:
    cdef Thread *thread = &engine.threads[<uintptr_t> argument]
    cdef NativeJob *job
    prepare_thread(b"fabric-copy")
    pthread_mutex_lock(&engine.mutex)
    while True:
        job = _next_job()
        if job != NULL:
            _copy_slice(job, thread)
        elif engine.thread_count - _stuck_count() > 2 * thread_goal():
            break               # surplus: it stood in for a thread that is not stuck any more
        else:
            pthread_cond_wait(&engine.work, &engine.mutex)
    thread.exists = False
    engine.thread_count -= 1
    pthread_mutex_unlock(&engine.mutex)
    return NULL


cdef void _copy_slice(NativeJob *job, Thread *thread) noexcept nogil:
    """Copy the next slice of a job, or check its seal; the mutex is released meanwhile."""
    cdef uint64_t offset = job.offset
    cdef Slot slice
    cdef bint is_copied = job.index == job.slot_count
    cdef int error
    slice.nbytes = 0
    if is_copied:
        job.must_check = False
    else:
        slice = _take_slice(job)
    job.running_count += 1
    thread.job = job
    thread.since_ns = now_ns()
    pthread_mutex_unlock(&engine.mutex)
    if is_copied:
        error = check_seal(job.pid, &job.seal)
    else:
        make_huge_pages(slice.data, slice.nbytes)
        error = read_memory(job.pid, slice.data, address_of(&slice) + offset, slice.nbytes)
    pthread_mutex_lock(&engine.mutex)
    thread.since_ns = 0
    job.running_count -= 1
    if error:
        job.error = error
    else:
        job.moved_bytes += slice.nbytes
    if job.running_count == 0 and _is_in(engine.abandoned, job):
        _remove(&engine.abandoned, job)
        _free(job)
    elif job.cancelled:
        pthread_cond_broadcast(&engine.stopped_running)
    elif job.running_count == 0 and not _has_work(job):
        _end(job)


cdef bint _is_in(NativeJob *first, NativeJob *job) noexcept nogil:
    while first != NULL and first != job:
        first = first.next
    return first != NULL


cdef NativeJob *_next_job() noexcept nogil:
    """Choose the first job with work for one more thread, and move it to the end of the list."""
    cdef NativeJob *job = engine.first
    while job != NULL and not (_has_work(job) and _may_add_thread(job) and not _is_stuck(job)):
        job = job.next
    if job != NULL and job.next != NULL:
        _remove(&engine.first, job)
        _append(job)
    return job


cdef int _goal_for(NativeJob *job) noexcept nogil:
    return thread_goal() * (2 if job.is_very_large else 1)


cdef bint _may_add_thread(NativeJob *job) noexcept nogil:
    """Whether one more thread may copy for it; the additional threads are for very large jobs."""
    return job.is_very_large or _running_count() < thread_goal()


cdef bint _has_work(NativeJob *job) noexcept nogil:
    if job.error or job.cancelled:
        return False
    return job.index < job.slot_count or (job.must_check and job.running_count == 0)


cdef Slot _take_slice(NativeJob *job) noexcept nogil:
    cdef Slot slice = job.slots[job.index]
    slice.data += job.offset
    slice.nbytes = min(slice.nbytes - job.offset, <uint64_t> SLICE_BYTES)
    job.offset += slice.nbytes
    if job.offset == job.slots[job.index].nbytes:
        job.index += 1
        job.offset = 0
    return slice


cdef void _end(NativeJob *job) noexcept nogil:
    cdef CompletionNode *node = job.node
    node.completion = Completion(
        job.tag, FAILED if job.error else COMPLETE, job.error, job.moved_bytes,
        0, 0,
    )
    job.node = NULL
    _remove(&engine.first, job)
    post(job.mailbox, node)
    _free(job)


cdef void _append(NativeJob *job) noexcept nogil:
    cdef NativeJob **place = &engine.first
    while place[0] != NULL:
        place = &place[0].next
    job.next = NULL
    place[0] = job


cdef void _remove(NativeJob **first, NativeJob *job) noexcept nogil:
    cdef NativeJob **place = first
    while place[0] != job:
        place = &place[0].next
    place[0] = job.next


cdef void _free(NativeJob *job) noexcept nogil:
    if job != NULL:
        free(job.slots)
        free(job.node)
        free(job)

"""Copies out of the memory of other processes, by native threads.

A job is all that one message has to fetch from one process. The threads take slices of
`SLICE_BYTES` from the jobs in turn, so that many jobs share them fairly, and one alone is copied by
all of them. What is very large is copied by twice as many, though that takes more CPU time.
"""

import os

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from dask_fabric.engine.mailbox cimport Completion, Ended, Mailbox, post
from dask_fabric.engine.native cimport prepare_thread, start_thread, thread_goal
from dask_fabric.linux cimport (
    pthread_cond_broadcast, pthread_cond_init, pthread_cond_t, pthread_cond_wait,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.paths.cma cimport read_memory
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.offers cimport Offer

cdef enum:
    SLICE_BYTES = 4 << 20
    VERY_LARGE_BYTES = 128 << 20    # who waits for it waits for more than 10 ms

cdef uint64_t COPY_BIT = <uint64_t> 1 << 63

cdef struct Job:
    uint64_t name
    int pid
    Offer *offers               # owned; those before `index` are taken, and `offset` of that one
    size_t offer_count
    size_t index
    uint64_t offset
    bint is_very_large
    int running_count           # slices that threads copy right now
    bint cancelled
    int error
    size_t moved_bytes
    Mailbox *mailbox
    Ended *ended                # owned until it is posted
    Job *next

cdef struct Engine:
    pthread_mutex_t mutex       # guards everything below, and every job
    pthread_cond_t work
    pthread_cond_t stopped_running
    Job *first                  # all jobs that have not ended, in the order of their turns
    uint64_t job_count          # ever
    int thread_count
    int running_count           # of the jobs that are not very large

cdef Engine engine


def _reset():
    """Also in a forked child, without its parent's threads and jobs."""
    memset(&engine, 0, sizeof(engine))
    pthread_mutex_init(&engine.mutex, NULL)
    pthread_cond_init(&engine.work, NULL)
    pthread_cond_init(&engine.stopped_running, NULL)


_reset()
os.register_at_fork(after_in_child=_reset)


def statistics():
    """Threads and jobs that copy out of other processes.

    Returns
    -------
    dict
        ``thread_count`` and ``job_count`` (in flight).
    """
    cdef int job_count = 0
    cdef Job *job
    pthread_mutex_lock(&engine.mutex)
    job = engine.first
    while job != NULL:
        job_count += 1
        job = job.next
    pthread_mutex_unlock(&engine.mutex)
    return {"thread_count": engine.thread_count, "job_count": job_count}


cdef uint64_t submit_copies(
    Mailbox *mailbox, int pid, const Offer *offers, size_t offer_count, uint64_t nbytes
) except 0:
    """Start to copy offers of `nbytes` together.

    The end is posted to the mailbox, unless the job is cancelled first. The memory at `data` of
    each must live until the end or the cancellation.
    """
    cdef Job *job = <Job *> calloc(1, sizeof(Job))
    cdef uint64_t name
    if job != NULL:
        job.offers = <Offer *> malloc(offer_count * sizeof(Offer))
        job.ended = <Ended *> malloc(sizeof(Ended))
    if job == NULL or job.offers == NULL or job.ended == NULL:
        _free(job)
        raise MemoryError()
    memcpy(job.offers, offers, offer_count * sizeof(Offer))
    job.offer_count = offer_count
    job.is_very_large = nbytes >= VERY_LARGE_BYTES
    job.pid = pid
    job.mailbox = mailbox
    pthread_mutex_lock(&engine.mutex)
    while engine.thread_count < _goal_for(job) and start_thread(_thread_main, NULL) == 0:
        engine.thread_count += 1
    if engine.thread_count == 0:
        pthread_mutex_unlock(&engine.mutex)
        _free(job)
        raise OSError("dask-fabric cannot start its native threads: is ulimit -u reached?")
    engine.job_count += 1
    job.name = name = engine.job_count | COPY_BIT
    _append(job)
    pthread_cond_broadcast(&engine.work)
    pthread_mutex_unlock(&engine.mutex)
    return name


cdef bint cancel_copies(uint64_t name) noexcept nogil:
    """End a job now: when this returns, no thread writes to its memory.

    Returns
    -------
    bool
        False where the job had ended already.
    """
    cdef Job *job
    pthread_mutex_lock(&engine.mutex)
    job = engine.first
    while job != NULL and job.name != name:
        job = job.next
    if job != NULL:
        job.cancelled = True
        while job.running_count > 0:
            pthread_cond_wait(&engine.stopped_running, &engine.mutex)
        _remove(job)
        _free(job)
    pthread_mutex_unlock(&engine.mutex)
    return job != NULL


cdef void *_thread_main(void *argument) noexcept nogil:
    cdef Job *job
    cdef Offer slice
    cdef int error
    prepare_thread(b"fabric-copy")
    pthread_mutex_lock(&engine.mutex)
    while True:
        job = _next_job()
        if job == NULL:
            pthread_cond_wait(&engine.work, &engine.mutex)
            continue
        slice = _take_slice(job)
        job.running_count += 1
        engine.running_count += not job.is_very_large
        pthread_mutex_unlock(&engine.mutex)
        error = read_memory(job.pid, slice.data, slice.address, slice.nbytes)
        pthread_mutex_lock(&engine.mutex)
        job.running_count -= 1
        engine.running_count -= not job.is_very_large
        if error:
            job.error = error
        else:
            job.moved_bytes += slice.nbytes
        if job.cancelled:
            pthread_cond_broadcast(&engine.stopped_running)
        elif job.running_count == 0 and not _has_work(job):
            _end(job)


cdef Job *_next_job() noexcept nogil:
    """The first job with work left for one more thread, which goes to the end of the row."""
    cdef Job *job = engine.first
    while job != NULL and not (_has_work(job) and _has_thread(job)):
        job = job.next
    if job != NULL and job.next != NULL:
        _remove(job)
        _append(job)
    return job


cdef int _goal_for(Job *job) noexcept nogil:
    return thread_goal() * (2 if job.is_very_large else 1)


cdef bint _has_thread(Job *job) noexcept nogil:
    """Whether one more thread may copy for it: the additional ones are for very large jobs."""
    return job.is_very_large or engine.running_count < thread_goal()


cdef bint _has_work(Job *job) noexcept nogil:
    return job.index < job.offer_count and not job.error and not job.cancelled


cdef Offer _take_slice(Job *job) noexcept nogil:
    cdef Offer slice = job.offers[job.index]
    slice.data += job.offset
    slice.address += job.offset
    slice.nbytes = min(slice.nbytes - job.offset, <uint64_t> SLICE_BYTES)
    job.offset += slice.nbytes
    if job.offset == job.offers[job.index].nbytes:
        job.index += 1
        job.offset = 0
    return slice


cdef void _end(Job *job) noexcept nogil:
    cdef Ended *ended = job.ended
    ended.completion = Completion(
        job.name, FAILED if job.error else COMPLETE, job.error, job.moved_bytes,
        0, 0,
    )
    job.ended = NULL
    _remove(job)
    post(job.mailbox, ended)
    _free(job)


cdef void _append(Job *job) noexcept nogil:
    cdef Job **place = &engine.first
    while place[0] != NULL:
        place = &place[0].next
    job.next = NULL
    place[0] = job


cdef void _remove(Job *job) noexcept nogil:
    cdef Job **place = &engine.first
    while place[0] != job:
        place = &place[0].next
    place[0] = job.next


cdef void _free(Job *job) noexcept nogil:
    if job != NULL:
        free(job.offers)
        free(job.ended)
        free(job)

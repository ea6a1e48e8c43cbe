"""Jobs of the `ucx` path: one for all frames that one message sends, or one transfer receives.

Each frame is one operation, which ends by itself in UCX's progress thread. The last one to end
completes the job.
"""

import logging
import os

cimport cython
from libc.errno cimport ENOTCONN
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport Job
from dask_fabric.jobs.mailbox cimport Completion, CompletionNode, Mailbox, post
from dask_fabric.linux cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.paths.ucx cimport core as ucx
from dask_fabric.paths.ucx.libucp cimport HOST
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.records cimport HOST_MEMORY

logger = logging.getLogger(__name__)

cdef struct NativeJob:
    uint64_t name
    uint64_t tag
    uint64_t *operations        # their names; 0 if one could not be started
    size_t operation_count
    size_t left_count           # operations that have not ended, plus one while they are started
    int error
    size_t moved_bytes
    Mailbox *mailbox
    CompletionNode *node        # owned until it is posted
    NativeJob *next

cdef struct Engine:
    pthread_mutex_t mutex       # guards everything below, and every job
    NativeJob *first            # jobs that have not ended
    uint64_t job_count          # jobs so far, for their names

cdef Engine engine

_has_warned = False


def _reset():
    """Also in a forked child, whose parent's transits are none of its own."""
    memset(&engine, 0, sizeof(engine))
    pthread_mutex_init(&engine.mutex, NULL)


_reset()
os.register_at_fork(after_in_child=_reset)


@cython.auto_pickle(False)
@cython.final
cdef class FrameJob(Job):
    """Sends or receives frames of one message by one endpoint."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        cdef NativeJob *job = _new_job(mailbox, self.tag, self.frames.count)
        cdef uint64_t name
        if job == NULL:
            raise MemoryError()
        name = job.name
        with nogil:
            _submit(job, self.token, self.frames, self.device_kind, self.is_sending)
        return name

    cdef bint _end(self) noexcept:
        cdef bint is_unended
        with nogil:
            is_unended = _cancel(self.name)
        self.cancelled_ns = now_ns()
        if self.is_sending:
            # A receiver that is just reading the frames out of this process's memory takes them for
            # valid until it sees the end of the stream, which the network may deliver late.
            self.hold(0)
        return is_unended or self.is_sending

    cdef bint _is_in_use(self) except -1:
        """Whether UCX may still use the memory.

        UCX continues a stuck operation only when the peer makes room in its queue. A dead peer
        never does, so the memory is freed a second after the cancellation.
        """
        global _has_warned
        cdef bint nothing_left
        with nogil:
            nothing_left = ucx.abandoned_count() == 0
        if nothing_left:
            _has_warned = False
            return False
        if now_ns() - self.cancelled_ns < ucx.STUCK_NS:
            return True
        if _is_dead(self.peer_pid):
            return False
        if not _has_warned:
            _has_warned = True
            logger.warning("UCX has not released frames of a lost peer; they stay in memory")
        return True


cdef void _submit(
    NativeJob *job, uint64_t token, FrameSet frames, int device_kind, bint sending
) noexcept nogil:
    cdef uint64_t operation
    cdef size_t index
    cdef Slot *slot
    cdef int kind
    for index in range(job.operation_count):
        slot = &frames.slots[index]
        kind = HOST if slot.memory == HOST_MEMORY else device_kind
        if sending:
            operation = ucx.offer(
                token, frames.sequence, slot.index, slot.data, slot.nbytes, kind, _on_end, job
            )
        else:
            operation = ucx.post(
                token, frames.sequence, slot.index, slot.data, slot.nbytes, kind, _on_end, job
            )
        job.operations[index] = operation
        if operation == 0:
            _count_down(job, ENOTCONN, 0)
    _count_down(job, 0, 0)


cdef bint _cancel(uint64_t name) noexcept nogil:
    """Cancel a job, unless it has ended; True if UCX may still use its memory."""
    cdef NativeJob *job
    cdef size_t index
    cdef bint is_unended = False
    pthread_mutex_lock(&engine.mutex)
    job = engine.first
    while job != NULL and job.name != name:
        job = job.next
    if job != NULL:
        job.left_count += 1     # so that it does not end, and is not freed, before it is below
    pthread_mutex_unlock(&engine.mutex)
    if job == NULL:
        return False
    for index in range(job.operation_count):
        # An operation that has ended is not found, and its callback has returned.
        if ucx.cancel(job.operations[index], PATIENCE_NS) == ucx.UNENDED:
            is_unended = True
    pthread_mutex_lock(&engine.mutex)
    _remove(job)
    pthread_mutex_unlock(&engine.mutex)
    _free(job)
    return is_unended


def _is_dead(pid):
    """Whether a process of this pid namespace has ended, reaped or not; False if pid is 0."""
    if pid == 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
        # If only its first thread has ended, a living process is shown as a zombie.
        return state in (b"Z", b"X") and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False


cdef void _on_end(
    void *context, uint64_t operation, int progress, int error, size_t moved_bytes
) noexcept nogil:
    _count_down(<NativeJob *> context, error, moved_bytes)


cdef void _count_down(NativeJob *job, int error, size_t moved_bytes) noexcept nogil:
    cdef CompletionNode *node = NULL
    cdef Mailbox *mailbox = job.mailbox
    pthread_mutex_lock(&engine.mutex)
    job.moved_bytes += moved_bytes
    if error:
        job.error = error
    job.left_count -= 1
    if job.left_count == 0:
        _remove(job)
        node, job.node = job.node, NULL
        node.completion = Completion(
            job.tag, FAILED if job.error else COMPLETE, job.error,
            job.moved_bytes, 0, 0,
        )
        # Under the mutex: `_cancel` finds the job either running, or with its completion posted.
        post(mailbox, node)
        _free(job)
    pthread_mutex_unlock(&engine.mutex)


cdef NativeJob *_new_job(
    Mailbox *mailbox, uint64_t tag, size_t operation_count
) noexcept nogil:
    cdef NativeJob *job = <NativeJob *> calloc(1, sizeof(NativeJob))
    if job == NULL:
        return NULL
    job.operations = <uint64_t *> calloc(operation_count, sizeof(uint64_t))
    job.node = <CompletionNode *> malloc(sizeof(CompletionNode))
    if job.operations == NULL or job.node == NULL:
        _free(job)
        return NULL
    job.operation_count = operation_count
    job.left_count = operation_count + 1
    job.mailbox = mailbox
    job.tag = tag
    pthread_mutex_lock(&engine.mutex)
    engine.job_count += 1
    job.name = engine.job_count
    job.next = engine.first
    engine.first = job
    pthread_mutex_unlock(&engine.mutex)
    return job


cdef void _remove(NativeJob *job) noexcept nogil:
    cdef NativeJob **place = &engine.first
    while place[0] != job:
        place = &place[0].next
    place[0] = job.next


cdef void _free(NativeJob *job) noexcept nogil:
    free(job.operations)
    free(job.node)
    free(job)

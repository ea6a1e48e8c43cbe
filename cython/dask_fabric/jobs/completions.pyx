"""Jobs of native threads: the delivery of their completions, cancellation, and quarantine.

Theory of operation
-------------------
A `Job` is work that native threads do for one owner, a channel. Each event loop has one
`CompletionQueue`, with a mailbox. What a job goes through:

1. `begin` gives the job a tag and starts it (`_start`, in the subclass).
2. A native thread posts a `Completion` with that tag to the mailbox, without the GIL. This makes
   the mailbox's event fd readable, which the loop watches. One wake-up collects all completions.
3. The queue looks the tag up and calls the owner's `_job_ended`.

`cancel` ends a job at any time, and its owner is not called. A completion that was already posted
finds no job of its tag, and is ignored: tags are never reused. The order in `cancel` matters: the
queue forgets the job first, then the native side ends it (`_end`).

Cancelling cannot always free the job's memory. A thread may wait in the kernel for a page of
another process, or of a file on a slow server, and cannot be interrupted. A network library may
keep memory of a cancelled operation. A peer may be reading what was offered to it (`hold`). The
comm closes all the same. The memory, and whatever else the job uses, goes to *quarantine*: the list
keeps it alive, and `reap` polls each entry (`_is_in_use`) and frees it once nothing uses it.
"""

import os
import weakref

cimport cython
from libc.stdint cimport int64_t, uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.mailbox cimport (
    Completion, Mailbox, close_mailbox, forget_all, next_completion, open_mailbox,
)
from dask_fabric.linux cimport eventfd_read, eventfd_write

REAP_SECONDS = 0.1

_queues = weakref.WeakKeyDictionary()
# Of (job, owner of its memory, function to call in the end or None). No attribute of the module:
# the interpreter frees those when it ends, while threads still run.
cdef list quarantine = []

cdef uint64_t last_tag = 0      # shared by all queues: tags are unique in the process

# Every job that is under way, by tag. When an event loop is garbage with all its comms, the garbage
# collector closes their sockets in any order with the other finalizers. So what the threads of a
# job use must not be garbage before the job is cancelled.
cdef dict under_way = {}


def _after_fork_in_child():
    for queue in list(_queues.values()):
        (<CompletionQueue> queue)._forked()
    _queues.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def queue_of(loop):
    """Return the completion queue of an event loop; made at the first call.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop

    Returns
    -------
    CompletionQueue
    """
    queue = _queues.get(loop)
    if queue is None:
        queue = _queues[loop] = CompletionQueue(weakref.ref(loop))
    return queue


@cython.auto_pickle(False)
@cython.final
cdef class CompletionQueue:
    """Collects the completions of one event loop's jobs, and calls the jobs' owners.

    The loop watches the queue only while it has users: a loop without comms has no file descriptor
    of ours.
    """

    def __cinit__(self, loop):
        self.loop = loop
        self.jobs = {}

    def __del__(self):
        # In __del__, because native threads may use memory that __dealloc__ finds cleared.
        for job in list(self.jobs.values()):
            (<Job> job).cancel()

    def __dealloc__(self):
        if self.mailbox != NULL:
            close_mailbox(self.mailbox)

    cdef open(self):
        """Add a user. The loop starts watching the queue with the first one."""
        if self.user_count == 0:
            if self.mailbox == NULL:
                self.mailbox = open_mailbox()
            self.loop().add_reader(self.mailbox.event_fd, self._collect)
        self.user_count += 1
        if quarantine:                  # of a loop that has closed, which reaps nothing more
            self.reap_later()

    cdef close(self):
        """Remove a user, whose jobs have ended. With the last one the event fd is closed."""
        self.user_count -= 1
        if self.user_count > 0:
            return
        loop = self.loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.mailbox.event_fd)
        close_mailbox(self.mailbox)
        self.mailbox = NULL

    cdef expect(self, Job job):
        """Register a job that is about to start, and set its tag."""
        global last_tag
        last_tag += 1
        job.tag = last_tag
        job.queue = self
        self.jobs[job.tag] = under_way[job.tag] = job

    cdef bint forget(self, Job job) except -1:
        """Do not call the owner at the job's end; False if it was called already."""
        job.queue = None
        under_way.pop(job.tag, None)
        return self.jobs.pop(job.tag, None) is not None

    cdef reap_later(self):
        """Schedule `reap`, repeated while the quarantine is not empty."""
        loop = self.loop()
        if not self.is_reap_scheduled and loop is not None and not loop.is_closed():
            self.is_reap_scheduled = True
            loop.call_later(REAP_SECONDS, self._reap)

    def _reap(self):
        self.is_reap_scheduled = False
        if reap():
            self.reap_later()

    def _forked(self):
        """In a forked child: the jobs are the parent's."""
        for job in self.jobs.values():
            (<Job> job).queue = None
        self.jobs.clear()
        under_way.clear()
        if self.mailbox != NULL:
            forget_all(self.mailbox)

    def _collect(self):
        cdef Completion completion
        cdef uint64_t ignored = 0
        cdef Job job
        if self.mailbox != NULL:
            eventfd_read(self.mailbox.event_fd, &ignored)
        # A callback may close the last channel, and with it the mailbox.
        while self.mailbox != NULL and next_completion(self.mailbox, &completion):
            job = self.jobs.pop(completion.tag, None)
            if job is None:
                continue
            under_way.pop(job.tag, None)
            job.queue = None
            job.waited_ns = now_ns() - completion.posted_ns
            job.busy_ns = completion.busy_ns
            owner = job.owner()
            if owner is None:
                continue
            try:
                owner._job_ended(job, completion.progress, completion.error, completion.moved_bytes)
            except BaseException:
                # The event fd is reset already: set it again for the remaining completions.
                if self.mailbox != NULL:
                    eventfd_write(self.mailbox.event_fd, 1)
                raise
            finally:
                owner = None


@cython.auto_pickle(False)
cdef class Job:
    """Work of native threads; it ends with a completion, or by cancellation.

    A subclass holds the parameters, and starts the work in its native threads.
    """

    cdef begin(self, CompletionQueue queue, object owner):
        """Start it. ``owner()._job_ended(job, progress, error, moved_bytes)`` is called at its end.

        Parameters
        ----------
        owner : weakref.ref
            Weak, because the owner refers to the loop: if the loop is closed before the job ends,
            it would never be freed. An owner that dies cancels its jobs.
        """
        self.owner = owner
        queue.expect(self)
        try:
            self.name = self._start(queue.mailbox)
        except BaseException:
            queue.forget(self)
            raise

    cdef bint cancel(self, object memory=None, object free=None) except -1:
        """Cancel the job, unless it has ended. Its owner is not called.

        Parameters
        ----------
        memory : object
            The owner of the memory that the job uses.
        free : callable, optional
            Called when the memory leaves quarantine, if it goes there.

        Returns
        -------
        bool
            Whether the memory may still be in use, and is in quarantine.
        """
        cdef CompletionQueue queue = self.queue
        self.subject = None
        if queue is None or not queue.forget(self) or not self._end():
            return False
        quarantine.append((self, memory, free))
        queue.reap_later()
        return True

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        """Start it in native threads, which post `tag` to the mailbox; return its name there."""
        raise NotImplementedError

    cdef bint _end(self) noexcept:
        """Cancel it in the native threads; True if they may still use its memory."""
        return False

    cdef bint _is_in_use(self) except -1:
        """Whether the memory of a cancelled job is still in use."""
        return False


@cython.auto_pickle(False)
@cython.final
cdef class _Hold(Job):
    """No work of this process: a peer may still be reading."""

    cdef int64_t since_ns

    cdef bint _is_in_use(self) except -1:
        return now_ns() - self.since_ns < HELD_NS


# ---------------------------------------------------------------- quarantine

cdef hold(CompletionQueue queue, object memory, object free):
    """Keep memory for `HELD_NS`, as a peer may be reading that has not seen the end of the comm.

    Parameters
    ----------
    queue
        Of the comm's event loop.
    memory : object
        The owner of the memory.
    free : callable
        Called afterwards.
    """
    cdef _Hold held = _Hold.__new__(_Hold)
    held.since_ns = now_ns()
    quarantine.append((held, memory, free))
    queue.reap_later()


def statistics():
    """Count the jobs in quarantine.

    Returns
    -------
    dict
        ``quarantined_count``: cancelled jobs whose memory is still in use.
    """
    return {"quarantined_count": len(quarantine)}


cpdef bint reap() except -1:
    """Free the entries of the quarantine that are not in use any more; True if some are left."""
    if not quarantine:
        return False
    ended = [entry for entry in quarantine if not (<Job> entry[0])._is_in_use()]
    for entry in ended:
        quarantine.remove(entry)
        if entry[2] is not None:
            entry[2]()
    return bool(quarantine)

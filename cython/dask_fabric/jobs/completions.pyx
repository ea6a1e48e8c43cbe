"""Jobs of native threads: how an event loop learns of their ends, and how they are cancelled.

Theory of operation
-------------------
A `Job` is something that native threads do for one owner, a channel. Its end is posted to the
mailbox of a `CompletionQueue`, of which each event loop has one; the loop watches the event fd of
the mailbox, one wake-up hands over every job that ended, and the owner of each is called.

A job can be cancelled at any time; then its owner is not called. A thread that waits in the kernel
for a page, of another process or of a file that some server does not bring, cannot be interrupted;
and a network library may keep memory although its operation was cancelled. A comm ends all the
same, and memory that is still in use stays in *quarantine*.
"""

import os
import weakref

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.mailbox cimport (
    Completion, Mailbox, close_mailbox, forget_all, next_completion, open_mailbox,
)
from dask_fabric.linux cimport eventfd_read, eventfd_write

REAP_SECONDS = 0.1

_queues = weakref.WeakKeyDictionary()
_quarantine = []                # (job, what owns its memory, what to call in the end or None)

cdef uint64_t last_tag = 0      # of all queues together: no job is ever taken for another


def _after_fork_in_child():
    for queue in list(_queues.values()):
        (<CompletionQueue> queue)._forked()
    _queues.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def queue_of(loop):
    """The completion queue of an event loop, made at the first call.

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
    """Jobs of one event loop, and the owners that await their ends.

    The loop watches the queue only while it has users, so that a loop without comms has no file
    descriptor of ours.
    """

    def __cinit__(self, loop):
        self.loop = loop
        self.jobs = {}

    def __del__(self):
        # Before anything in a cycle is taken apart: native threads may be using its memory.
        for job in list(self.jobs.values()):
            (<Job> job).cancel()

    def __dealloc__(self):
        if self.mailbox != NULL:
            close_mailbox(self.mailbox)

    cdef open(self):
        """Count one more user; for the first the loop begins to watch the queue."""
        if self.user_count == 0:
            if self.mailbox == NULL:
                self.mailbox = open_mailbox()
            self.loop().add_reader(self.mailbox.event_fd, self._collect)
        self.user_count += 1

    cdef close(self):
        """Count one user less; with the last, whose jobs have ended, the event fd is closed."""
        self.user_count -= 1
        if self.user_count > 0:
            return
        loop = self.loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.mailbox.event_fd)
        close_mailbox(self.mailbox)
        self.mailbox = NULL

    cdef expect(self, Job job):
        """Give a job that is about to start its tag, and await its end."""
        global last_tag
        last_tag += 1
        job.tag = last_tag
        job.queue = self
        self.jobs[job.tag] = job

    cdef bint forget(self, Job job) except -1:
        """Call nobody at the job's end; False where it has ended and its owner was called."""
        job.queue = None
        return self.jobs.pop(job.tag, None) is not None

    cdef reap_later(self):
        """Look after the quarantine soon, and again while it is not empty."""
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
            job.queue = None
            job.waited_ns = now_ns() - completion.posted_ns
            job.busy_ns = completion.busy_ns
            owner = job.owner()
            if owner is None:
                continue
            try:
                owner._job_ended(job, completion.progress, completion.error, completion.moved_bytes)
            except BaseException:
                # The event fd is read already; the other completions must not wait for the next.
                if self.mailbox != NULL:
                    eventfd_write(self.mailbox.event_fd, 1)
                raise
            finally:
                owner = None


@cython.auto_pickle(False)
cdef class Job:
    """What native threads do; its end is reported by a completion queue, or it is cancelled.

    A subclass has its parameters, and starts it in the threads of its kind.
    """

    cdef begin(self, CompletionQueue queue, object owner):
        """Start it. ``owner()._job_ended(job, progress, error, moved_bytes)`` is called at its end.

        Parameters
        ----------
        owner : weakref.ref
            The owner is not entry alive: it reaches the loop, and would live for ever where the loop
            is closed before the end. One that dies cancels its jobs.
        """
        self.owner = owner
        queue.expect(self)
        try:
            self.name = self._start(queue.mailbox)
        except BaseException:
            queue.forget(self)
            raise

    cdef bint cancel(self, object memory=None, object free=None) except -1:
        """End the job, unless it has ended; its owner hears no more of it.

        Parameters
        ----------
        memory : object
            What owns the memory that the job uses.
        free : callable, optional
            Called when that is in use no more, if it still is now.

        Returns
        -------
        bool
            Whether something may still use the memory: then it stays in quarantine.
        """
        cdef CompletionQueue queue = self.queue
        self.subject = None
        if queue is None or not queue.forget(self) or not self._end():
            return False
        _quarantine.append((self, memory, free))
        queue.reap_later()
        return True

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        """Start it in native threads, which post `tag` to the mailbox; give their name for it."""
        raise NotImplementedError

    cdef bint _end(self) noexcept:
        """End it in the native threads; True if they may still use its memory."""
        return False

    cdef bint _is_in_use(self) except -1:
        """Whether the memory of a job that was cancelled is still in use."""
        return False

# ---------------------------------------------------------------- quarantine

def statistics():
    """What is in quarantine.

    Returns
    -------
    dict
        ``quarantined_count``, of cancelled jobs whose memory is still in use.
    """
    return {"quarantined_count": len(_quarantine)}


cpdef bint reap() except -1:
    """Free what nothing uses any more, and say whether something is left."""
    if not _quarantine:
        return False
    ended = [entry for entry in _quarantine if not (<Job> entry[0])._is_in_use()]
    for entry in ended:
        _quarantine.remove(entry)
        if entry[2] is not None:
            entry[2]()
    return bool(_quarantine)

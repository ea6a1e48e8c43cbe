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
comm closes all the same. The memory, and whatever else the job uses, goes to *quarantine*: this
table keeps it alive, and `reap` polls each entry (`_is_in_use`) and frees it once nothing uses it.
A thread calls `reap` until the quarantine is empty: an event loop may be closed or stopped by then.
"""

import _thread
import os
import time
import weakref

cimport cython
from libc.stdint cimport int64_t, uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.mailbox cimport (
    Completion, Mailbox, close_mailbox, forget_all, next_completion, open_mailbox,
)
from dask_fabric.linux cimport eventfd_read, eventfd_write

cdef extern from "Python.h":
    bint Py_IsInitialized() nogil

REAP_SECONDS = 0.1

_queues = weakref.WeakKeyDictionary()
# By number (job, owner of its memory, function to call in the end or None). No attribute of the
# module: the interpreter frees those when it ends, while threads still run.
cdef dict quarantine = {}
cdef list inherited = []                # the same of a forked child's parent: never freed
cdef uint64_t last_number = 0
cdef Py_ssize_t held_bytes = 0          # of memory that is held for peers
cdef Py_ssize_t held_bytes_limit = 256 << 20

cdef bint has_reaper = False            # a thread that reaps

cdef uint64_t last_tag = 0      # shared by all queues: tags are unique in the process

# Every job that is under way, by tag. When an event loop is garbage with all its comms, the garbage
# collector closes their sockets in any order with the other finalizers. So what the threads of a
# job use must not be garbage before the job is cancelled.
cdef dict under_way = {}


def _after_fork_in_child():
    global has_reaper, held_bytes
    has_reaper = False
    # The parent frees what goes with these. Its threads may have locks of the rest in the kernel.
    inherited.extend(entry for entry in quarantine.values() if type(entry[0]) is not Job)
    quarantine.clear()
    held_bytes = 0
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
        if quarantine:                  # no thread could be had
            _start_reaper()

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
        _add(self, memory, free)
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

    cdef void hold(self, Py_ssize_t nbytes) noexcept:
        """Keep memory for `HELD_NS`: a peer that has not seen the end of the comm may be reading.

        To be called before the job goes to quarantine.

        Parameters
        ----------
        nbytes : int
            What counts for the limit beyond which it is freed earlier; 0 if it must not be, since
            the peer would take other bytes for these.
        """
        self.held_until_ns = now_ns() + HELD_NS
        self.held_bytes = nbytes


# ---------------------------------------------------------------- quarantine

cdef hold(object memory, Py_ssize_t nbytes, object free):
    """Keep memory that no job uses, as `Job.hold` does.

    Parameters
    ----------
    memory : object
        The owner of the memory.
    nbytes : int
    free : callable
        Called afterwards.
    """
    cdef Job nothing = Job.__new__(Job)
    nothing.hold(nbytes)
    _add(nothing, memory, free)


cdef _add(Job job, object memory, object free):
    global held_bytes, last_number
    last_number += 1
    quarantine[last_number] = job, memory, free
    held_bytes += job.held_bytes
    _start_reaper()
    if held_bytes > held_bytes_limit:
        _hold_less()


cdef _hold_less():
    """Free the oldest of what is held for peers, but for the newest entry of all.

    Most peers have seen the end by now. One that has not gets an error, or finds out afterwards.
    """
    cdef Py_ssize_t excess_bytes = held_bytes - held_bytes_limit
    for number in list(quarantine)[:-1]:
        if excess_bytes <= 0:
            break
        entry = quarantine.get(number)
        if entry is not None and (<Job> entry[0]).held_bytes:
            (<Job> entry[0]).held_until_ns = 0
            excess_bytes -= (<Job> entry[0]).held_bytes
    reap()


def configure(Py_ssize_t most_held_bytes):
    """Bound what is held for peers that may still be reading.

    Parameters
    ----------
    most_held_bytes : int
    """
    global held_bytes_limit
    held_bytes_limit = most_held_bytes


def statistics():
    """Count the jobs in quarantine.

    Returns
    -------
    dict
        ``quarantined_count``: cancelled jobs whose memory is still in use. ``held_bytes``: memory
        of ended comms that a peer may still be reading.
    """
    return {"quarantined_count": len(quarantine), "held_bytes": held_bytes}


cpdef bint reap() except -1:
    """Free the entries of the quarantine that are not in use any more; True if some are left.

    Any thread may call it, also while another one does.
    """
    cdef int64_t now
    if not quarantine:
        return False
    now = now_ns()
    for number in list(quarantine):
        _free_unused(number, now)
    return bool(quarantine)


cdef void _free_unused(number, int64_t now) noexcept:
    """Free an entry of the quarantine; its error is printed, and is not that of a comm."""
    global held_bytes
    cdef Job job
    entry = quarantine.get(number)
    if entry is None:                   # another thread was faster
        return
    job, memory, free = entry
    if job.held_until_ns > now or job._is_in_use() or quarantine.pop(number, None) is None:
        return
    held_bytes -= job.held_bytes
    if free is not None:
        free()


cdef _start_reaper():
    """Reap in a thread until the quarantine is empty.

    Finalizers call this in any place. So it has no lock, and does not wait until the thread runs:
    when the interpreter ends it never does.
    """
    global has_reaper
    if has_reaper or not Py_IsInitialized():
        return
    has_reaper = True
    try:
        _thread.start_new_thread(_reap_all, ())
    except RuntimeError:                # no more threads can be had: the end of a comm starts one
        has_reaper = False


def _reap_all():
    global has_reaper
    try:
        while quarantine:
            time.sleep(REAP_SECONDS)
            reap()
    finally:
        has_reaper = False

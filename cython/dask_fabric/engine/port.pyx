"""A port: the place of one event loop in the engine.

The loop watches the event fd of the port's mailbox; one wake-up hands over every job that ended.
"""

import os
import weakref

cimport cython
from libc.stdint cimport int64_t, uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.engine cimport quarantine
from dask_fabric.engine.copies cimport COPY_BIT, cancel_copies, submit_copies
from dask_fabric.engine.mailbox cimport (
    Completion, close_mailbox, forget_all, next_completion, open_mailbox,
)
from dask_fabric.engine.threads cimport cancel, start, submit
from dask_fabric.engine.transits cimport (
    TRANSIT_BIT, cancel_transit, keep_for_ucx, let_go_for_ucx, submit_transit,
)
from dask_fabric.linux cimport eventfd_read, eventfd_write, iovec
from dask_fabric.paths.stream cimport Direction
from dask_fabric.wire.offers cimport Offers

LET_GO_SECONDS = 0.1

_ports = weakref.WeakKeyDictionary()


def _after_fork_in_child():
    for port in list(_ports.values()):
        (<Port> port)._forked()
    _ports.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def port_of(loop):
    """The port of an event loop, made at the first call.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop

    Returns
    -------
    Port
    """
    port = _ports.get(loop)
    if port is None:
        port = _ports[loop] = Port(weakref.ref(loop))
    return port


@cython.auto_pickle(False)
cdef class Port:
    """Jobs of one event loop, and the callbacks that await their ends.

    The loop watches the port only while it has channels, so that a loop without comms has no
    file descriptor of ours.
    """

    def __cinit__(self, loop):
        self.loop = loop
        self.jobs = {}

    def __del__(self):
        # Before anything in a cycle is taken apart: its memory may be in the hands of the engine.
        for job in list(self.jobs):
            self.cancel(job)

    def __dealloc__(self):
        if self.mailbox != NULL:
            close_mailbox(self.mailbox)

    cdef open(self):
        """Count one more channel; the first makes the loop watch the port."""
        if self.channel_count == 0:
            start()
            if self.mailbox == NULL:
                self.mailbox = open_mailbox()
            self.loop().add_reader(self.mailbox.event_fd, self._collect)
        self.channel_count += 1

    cdef close(self):
        """Count one channel less; the last, whose jobs have ended, lets go of the event fd."""
        self.channel_count -= 1
        if self.channel_count > 0:
            return
        loop = self.loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.mailbox.event_fd)
        close_mailbox(self.mailbox)
        self.mailbox = NULL

    cdef uint64_t submit(
        self, int fd, Direction direction, const iovec *vectors, size_t vector_count, object link
    ) except 0:
        """Start a job; `link._job_ended(job, progress, error, moved_bytes)` is called at its end.

        The link is not kept alive: it reaches the loop, and would be kept for ever where the loop
        is closed before the job's end. A link that dies cancels its jobs.
        """
        cdef uint64_t job = submit(self.mailbox, fd, direction, vectors, vector_count)
        self.jobs[job] = weakref.ref(link)
        return job

    cdef uint64_t submit_copies(self, int pid, Offers offers, object link) except 0:
        """As `submit`, for copies out of another process."""
        quarantine.reap()
        cdef uint64_t job = submit_copies(
            self.mailbox, pid, offers.items, offers.count, offers.nbytes
        )
        self.jobs[job] = weakref.ref(link)
        return job

    cdef uint64_t submit_transit(
        self, uint64_t token, Offers offers, int device_kind, bint sending, object link
    ) except 0:
        """As `submit`, for frames by UCX."""
        cdef uint64_t job = submit_transit(
            self.mailbox, token, offers.sequence, offers.items, offers.count, device_kind, sending
        )
        self.jobs[job] = weakref.ref(link)
        return job

    cdef cancel(self, uint64_t job, object memory=None, int peer_pid=0, object free=None):
        """End a job; its callback is not called.

        Returns
        -------
        bool
            Whether something else may still use its memory: UCX, or a thread that waits for a page.
            What owns it, `memory`, is then kept alive for as long as it does (with UCX for a
            second, if the process `peer_pid` is dead), and `free` is called when it does no more.
        """
        cdef bint is_unended = False
        if job in self.jobs:
            with nogil:
                if job & COPY_BIT:
                    is_unended = cancel_copies(job)
                elif job & TRANSIT_BIT:
                    is_unended = cancel_transit(job)
                else:
                    is_unended = cancel(job)
            del self.jobs[job]
        if is_unended:
            if job & TRANSIT_BIT:
                keep_for_ucx(memory, peer_pid)
            else:
                quarantine.keep(job, memory, free)
            self._let_go_later()
        return is_unended

    cdef _let_go_later(self):
        loop = self.loop()
        if not self.lets_go and loop is not None and not loop.is_closed():
            self.lets_go = True
            loop.call_later(LET_GO_SECONDS, self._let_go)

    def _let_go(self):
        cdef bint is_some_left = quarantine.reap()
        self.lets_go = False
        if let_go_for_ucx() or is_some_left:
            self._let_go_later()

    cdef int64_t take_waited_ns(self) noexcept:
        """How long the job that has just ended waited for the loop; 0 where none has."""
        cdef int64_t waited_ns = self.waited_ns
        self.waited_ns = 0
        return waited_ns

    cdef int64_t take_busy_ns(self) noexcept:
        """How long the job that has just ended was busy; 0 where none has, or nobody knows."""
        cdef int64_t busy_ns = self.busy_ns
        self.busy_ns = 0
        return busy_ns

    def _forked(self):
        """In a forked child: the jobs are the parent's."""
        self.jobs.clear()
        if self.mailbox != NULL:
            forget_all(self.mailbox)

    def _collect(self):
        cdef Completion completion
        cdef uint64_t ignored = 0
        if self.mailbox != NULL:
            eventfd_read(self.mailbox.event_fd, &ignored)
        # A callback may close the last channel, and with it the mailbox.
        while self.mailbox != NULL and next_completion(self.mailbox, &completion):
            known = self.jobs.pop(completion.job, None)
            link = None if known is None else known()
            if link is None:
                continue
            self.waited_ns = now_ns() - completion.posted_ns
            self.busy_ns = completion.busy_ns
            try:
                link._job_ended(
                    completion.job, completion.progress, completion.error, completion.moved_bytes
                )
            except BaseException:
                # The others are still to be told; the event fd does not tell of them again.
                if self.mailbox != NULL:
                    eventfd_write(self.mailbox.event_fd, 1)
                raise
            finally:
                self.waited_ns = self.busy_ns = 0

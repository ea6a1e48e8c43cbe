"""The base class for paths written in Python, such as those of third parties.

Each transfer calls Python methods, which costs microseconds, and its threads need the GIL from time
to time. That is enough to try a path out; a fast one derives from `Path` in Cython.
"""

import logging
from functools import partial

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EIO, ETIMEDOUT
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from dask_fabric.jobs.completions cimport Job
from dask_fabric.jobs.mailbox cimport Mailbox
from dask_fabric.linux cimport ECANCELED
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.path cimport (
    ABANDON, FETCH_FAULT, HOPELESS, STARTED, Fetch, Path, Transfer,
)
from dask_fabric.wire.records cimport HOST_MEMORY, OFFER_BYTES

logger = logging.getLogger(__name__)


@cython.auto_pickle(False)
@cython.final
cdef class ThreadJob(Job):
    """A call in a thread of the loop's default executor."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        self.future = self.loop.run_in_executor(None, self.work)
        self.future.add_done_callback(self._done)
        return 1

    def _done(self, future):
        # The executor cancels what it has not begun when it is shut down.
        error = OSError(ECANCELED, "") if future.cancelled() else future.exception()
        if isinstance(error, OSError) and error.errno:
            code = error.errno
        else:
            code = EIO if error else 0
        queue = self.queue
        if queue is None or not self.queue.forget(self):
            return                      # cancelled
        owner = self.owner()
        if owner is not None:
            owner._job_ended(self, FAILED if code else COMPLETE, code, 0)

    cdef bint _end(self) noexcept:
        return not self.ended           # a thread cannot be stopped

    cdef bint _is_in_use(self) except -1:
        # Not only the future: it never ends if the loop was closed.
        return not self.ended and not self.future.done()


@cython.auto_pickle(False)
cdef class PythonPath(Path):
    """A path whose frames are described and fetched by Python methods.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Of the comm.
    name : str
    number : int
        From 16 to 31, the same at both ends.
    descriptor_bytes : int
        The size of the descriptors that `describe_frame` returns, at most 24.
    least_bytes : int, optional
        The smallest frame that is offered; at least 64 KiB.
    """

    def __init__(self, loop, name, number, descriptor_bytes, least_bytes=OFFER_BYTES):
        Path.__init__(self, name, number, 1 << HOST_MEMORY, descriptor_bytes, least_bytes)
        self.loop = loop

    # ------------------------------------------------------------ implemented by each path

    def describe_frame(self, memory):
        """Make a frame available to the peer. Called in the event loop, when it is sent.

        Parameters
        ----------
        memory : memoryview
            Its bytes, which do not change until the frame is released.

        Returns
        -------
        bytes
            The descriptor by which the peer finds it.
        """
        raise NotImplementedError

    def fetch_frame(self, descriptor, memory):
        """Fetch a frame of the peer. Called in a thread.

        Parameters
        ----------
        descriptor : bytes
            As received from the peer; do not trust it.
        memory : memoryview
            The destination, to be filled completely.

        Raises
        ------
        OSError
            The frame cannot be fetched: it will be requested over the stream.
        """
        raise NotImplementedError

    def release_frame(self, descriptor):
        """Release a frame that was described: the peer will not fetch it any more.

        Do not change its memory: if the peer could not fetch it, it is about to be sent on the
        stream.
        """

    def patience_seconds(self, nbytes):
        """How long a transfer of *nbytes* may take; 0 for no limit."""
        return 0.0

    def is_hopeless(self):
        """Whether the comm must end after a transfer timed out; otherwise frames are requested."""
        return False

    def closed(self):
        """The connection has ended."""

    # ------------------------------------------------------------ the interface of `Path`

    cdef int describe(self, Slot *slot) except -1:
        cdef bytes descriptor = self.describe_frame(
            PyMemoryView_FromMemory(slot.data, slot.nbytes, PyBUF_READ)
        )
        if len(descriptor) != self.descriptor_bytes:
            raise ValueError(
                f"the path {self.name} described a frame by {len(descriptor)} bytes, "
                f"not by {self.descriptor_bytes}"
            )
        memcpy(slot.descriptor, <const char *> descriptor, self.descriptor_bytes)
        return 0

    cdef int released(self, FrameSet frames) except -1:
        cdef Slot *slot
        cdef uint32_t index
        for index in range(frames.count):
            slot = &frames.slots[index]
            if slot.path == self.number:
                try:
                    self.release_frame(slot.descriptor[:self.descriptor_bytes])
                except Exception:       # it must not keep the connection from ending
                    logger.exception("The path %s cannot release a frame", self.name)
        return 0

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        cdef FrameSet frames = transfer.frames
        cdef ThreadJob job = ThreadJob.__new__(ThreadJob)
        cdef Slot *slot
        cdef uint32_t index
        cdef list wanted = []
        for index in range(frames.count):
            slot = &frames.slots[index]
            wanted.append((
                slot.descriptor[:self.descriptor_bytes],
                PyMemoryView_FromMemory(slot.data, slot.nbytes, PyBUF_WRITE),
            ))
        job.loop = self.loop
        job.ended = []
        job.work = partial(_fetch_all, self.fetch_frame, wanted, job.ended)
        job.subject = transfer
        transfer.job = job
        job.begin(self.queue, self.owner)
        return STARTED

    cdef double tend(self, Transfer transfer) except? -3.0:
        transfer.stage += 1
        if transfer.stage == 1:
            return self.patience_seconds(transfer.frames.nbytes)
        transfer.error = ETIMEDOUT
        return HOPELESS if self.is_hopeless() else ABANDON

    cdef int cancel(self, Transfer transfer) except -1:
        (<ThreadJob> transfer.job).cancel(list(transfer.frames.frames))
        return 0

    cdef void close(self) noexcept:
        self.closed()


def _fetch_all(fetch_frame, wanted, ended):
    try:
        for descriptor, memory in wanted:
            fetch_frame(descriptor, memory)
    finally:
        ended.append(True)

"""The job of a transfer: its completion, cancellation and quarantine."""

import os

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from dask_fabric.jobs.completions cimport Job
from dask_fabric.jobs.mailbox cimport Mailbox
from dask_fabric.memory.arrays cimport slab_of
from dask_fabric.paths.ofi.nonces cimport Seal
from dask_fabric.paths.ofi.regions cimport Slab
from dask_fabric.paths.ofi.worker cimport Peer, cancel, is_reading, submit
from dask_fabric.wire.frames cimport FrameSet


@cython.auto_pickle(False)
@cython.final
cdef class FetchJob(Job):
    """Reads the frames of one transfer out of a peer's memory."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        cdef int error = 0
        cdef uint32_t index
        cdef uint64_t name
        cdef Slab *slabs = <Slab *> calloc(self.frames.count, sizeof(Slab))
        if slabs == NULL:
            raise MemoryError()
        for index in range(self.frames.count):
            slabs[index].nbytes = slab_of(self.frames.slots[index].data, &slabs[index].data)
        with nogil:                     # to register large memory takes milliseconds
            name = submit(
                mailbox, self.tag, self.peer, self.frames.slots, slabs, self.frames.count,
                &self.seal, &error
            )
        free(slabs)
        if name == 0:
            raise OSError(error, f"libfabric cannot begin to read: {os.strerror(error)}")
        return name

    cdef bint _end(self) noexcept:
        cdef uint64_t name = self.name
        cdef bint is_in_use
        with nogil:
            is_in_use = cancel(name)
        return is_in_use

    cdef bint _is_in_use(self) except -1:
        cdef uint64_t name = self.name
        cdef bint is_in_use
        with nogil:
            is_in_use = is_reading(name)
        return is_in_use


cdef FetchJob new_fetch_job(Peer *peer, FrameSet frames, const Seal *seal):
    """Make a job for frames that have memory; it keeps them alive until its end."""
    cdef FetchJob job = FetchJob.__new__(FetchJob)
    job.peer = peer
    job.frames = frames
    job.seal = seal[0]
    return job

"""What a connection has sent and must still keep: the frames that its peer may fetch.

Each message with frames on offer has a *lease* on their memory. It ends when the peer has answered,
and no path sends from the memory any more.
"""

cimport cython

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.frames cimport FrameSet

from dask_fabric.wire.records import violation


@cython.auto_pickle(False)
@cython.final
cdef class Lease:
    """The frames of one message that are on offer, until nobody needs their memory any more."""

    cdef pin(self, Job job):
        """A job reads the memory from now on, whatever the peer answers."""
        if self.pins is None:
            self.pins = []
        self.pins.append(job)

    cdef bint _is_over(self) noexcept:
        return self.is_answered and not self.pins and not self.is_staging


@cython.auto_pickle(False)
@cython.final
cdef class Outbox:
    """The open leases of a connection."""

    def __cinit__(self):
        self.leases = {}

    def __len__(self):
        return len(self.leases)

    cdef Lease lease(self, FrameSet frames):
        """Keep frames that are on offer from now on."""
        cdef Lease lease = Lease.__new__(Lease)
        lease.frames = frames
        self.leases[frames.sequence] = lease
        self.in_flight_bytes += frames.nbytes
        self.unanswered_count += 1
        return lease

    cdef Lease answered(self, sequence):
        """The peer has answered; the caller calls `release` when it has done its own part.

        Raises
        ------
        ProtocolError
            Nothing of that message is on offer.
        """
        cdef Lease lease = self.leases.get(sequence)
        if lease is None or lease.is_answered:
            raise violation(f"an answer about message {sequence}, which offers nothing")
        lease.is_answered = True
        self.in_flight_bytes -= lease.frames.nbytes
        self.unanswered_count -= 1
        return lease

    cdef bint staging_ended(self, Lease lease) except -1:
        """The memory is not read any more to bring it to the host; as `release`."""
        lease.is_staging = False
        return self.release(lease)

    cdef bint unpin(self, Lease lease, Job job) except -1:
        """A job has ended, and does not read the memory any more; as `release`."""
        lease.pins.remove(job)
        return self.release(lease)

    cdef cancel_pins(self):
        """End all jobs that read the memory; what is in use nevertheless stays in quarantine."""
        cdef Lease lease
        cdef Job job
        for lease in self.leases.values():
            for job in lease.pins or ():
                job.cancel(lease.frames)

    cdef bint release(self, Lease lease) except -1:
        """End a lease, if nobody needs it any more; True where that is so now."""
        if not lease._is_over():
            return False
        return self.leases.pop(lease.frames.sequence, None) is not None

    cdef Py_ssize_t in_flight_bytes_by(self, int path) except -1:
        """What is on offer by one path, and not answered."""
        cdef Lease lease
        cdef Py_ssize_t nbytes = 0
        for lease in list(self.leases.values()):    # also called by other threads
            if not lease.is_answered:
                nbytes += lease.frames.part(path).nbytes
        return nbytes

    cdef clear(self):
        self.leases.clear()
        self.in_flight_bytes = self.unanswered_count = 0

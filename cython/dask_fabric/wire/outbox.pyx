"""Leases: frames that were offered, and must stay in memory until the peer has fetched them.

Each message with frames on offer has a *lease* on their memory. It ends when the peer has answered
and no job of this side reads the memory any more.
"""

cimport cython

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.frames cimport FrameSet

from dask_fabric.wire.records import violation


@cython.auto_pickle(False)
@cython.final
cdef class Lease:
    """Keeps the offered frames of one message in memory."""

    cdef pin(self, Job job):
        """Hold the lease until the job has ended, even if the peer answers earlier."""
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
        """Take a lease on frames that are about to be offered."""
        cdef Lease lease = Lease.__new__(Lease)
        lease.frames = frames
        self.leases[frames.sequence] = lease
        self.in_flight_bytes += frames.nbytes
        self.unanswered_count += 1
        return lease

    cdef Lease answered(self, sequence):
        """The peer has answered. The caller calls `release` after it has handled the answer.

        Raises
        ------
        ProtocolError
            No frame of that message is on offer.
        """
        cdef Lease lease = self.leases.get(sequence)
        if lease is None or lease.is_answered:
            raise _unasked(sequence)
        lease.is_answered = True
        self.in_flight_bytes -= lease.frames.nbytes
        self.unanswered_count -= 1
        return lease

    cdef answered_late(self, sequence):
        """The peer has answered, in what arrived before the connection ended and was not read.

        Raises
        ------
        ProtocolError
            No frame of that message was on offer at the end.
        """
        if self.late is not None:   # else in a forked child: the leases are its parent's
            if sequence not in self.late:
                raise _unasked(sequence)
            self.late.remove(sequence)

    cdef bint staging_ended(self, Lease lease) except -1:
        """The copy to host memory has ended; returns what `release` does."""
        lease.is_staging = False
        return self.release(lease)

    cdef bint unpin(self, Lease lease, Job job) except -1:
        """A job has ended; returns what `release` does."""
        lease.pins.remove(job)
        return self.release(lease)

    cdef cancel_pins(self):
        """Cancel all jobs that read the memory; memory that stays in use goes to quarantine."""
        cdef Lease lease
        cdef Job job
        for lease in self.leases.values():
            for job in lease.pins or ():
                job.cancel(lease.frames)

    cdef bint release(self, Lease lease) except -1:
        """End a lease if nothing needs it any more; True if that ended it."""
        if not lease._is_over():
            return False
        return self.leases.pop(lease.frames.sequence, None) is not None

    cdef Py_ssize_t in_flight_bytes_by(self, int path) except -1:
        """The bytes in flight that are offered by one path."""
        cdef Lease lease
        cdef Py_ssize_t nbytes = 0
        for lease in list(self.leases.values()):    # also called by other threads
            if not lease.is_answered:
                nbytes += lease.frames.part(path).nbytes
        return nbytes

    cdef clear(self):
        cdef Lease lease
        if self.late is None:
            self.late = set()
        for lease in self.leases.values():
            if not lease.is_answered:
                self.late.add(lease.frames.sequence)
        self.leases.clear()
        self.in_flight_bytes = self.unanswered_count = 0


cdef _unasked(sequence):
    return violation(f"an answer about message {sequence}, which offers nothing")

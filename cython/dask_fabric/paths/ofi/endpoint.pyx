"""The endpoint of the `ofi` path: fetches frames by reads of remote memory.

The sender registers a frame's memory when it offers the frame. The descriptor tells the receiver
what to read. A transfer is one job of libfabric's thread.

A peer that is stopped, or was killed on some providers, is never reported. So a job without
progress for `STALLED_SECONDS` is abandoned, its frames are requested over the stream, and for
`REFUSED_NS` the path fetches nothing. The sender offers by it again once it has read the
peer's nonce.

A read of memory that is not registered any more is a fault: some providers then break the
connection of the two processes, and may never report the end of other reads. So at the end of a
comm, and after a transfer that was abandoned, released frames stay registered for a while (`hold`).
"""

from functools import partial

cimport cython
from libc.errno cimport ENOTCONN, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport hold, reap
from dask_fabric.memory.arrays cimport slab_of
from dask_fabric.paths.ofi.read_jobs cimport FetchJob, new_fetch_job
from dask_fabric.paths.ofi.regions cimport Slab, register, release_key, remote_address
from dask_fabric.paths.ofi.nonces cimport Nonce, Place, Seal, copy_seal
from dask_fabric.paths.ofi.worker cimport (
    REFUSED_NS, Peer, close_peer, count_offers, is_proven, moved_bytes_of, open_peer, prove_again,
)
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.path cimport (
    ABANDON, FETCH_FAULT, NOT_FETCHED, RECOVERED, STARTED, STILL_BROKEN, Fetch, Path, Transfer,
)
from dask_fabric.wire.records cimport HOST_MEMORY

NAME = "ofi"
cdef enum:
    PATH_NUMBER = 4             # on the wire

NUMBER = PATH_NUMBER
TEND_SECONDS = 0.25             # interval of the checks for progress
STALLED_SECONDS = 5.0           # a job is abandoned after this time without progress


@cython.auto_pickle(False)
@cython.final
cdef class OFIPath(Path):
    """Reads frames out of the memory of a peer.

    Parameters
    ----------
    theirs : mapping
        The peer's description; see `dask_fabric.paths.ofi.worker.facts`.
    least_bytes : int
        The smallest frame that is offered.
    own : dask_fabric.paths.ofi.nonces.Nonce, optional
        What the own description has of this connection alone: revoked at its end.

    Notes
    -----
    `offers` is false if libfabric does not run here; this side then sends on the stream.
    """

    def __init__(self, theirs, least_bytes, Nonce own=None):
        cdef bytes name = theirs["name"]
        cdef const char *its_name = name
        cdef size_t name_bytes = len(name)
        cdef Seal process
        Path.__init__(self, NAME, NUMBER, 1 << HOST_MEMORY, sizeof(Place), least_bytes)
        copy_seal(&process, theirs["address"], theirs["key"], theirs["nonce"])
        copy_seal(
            &self.seal, theirs["connection_address"], theirs["connection_key"],
            theirs["connection_nonce"],
        )
        self.own = own
        with nogil:             # the lock may be held while libfabric connects
            self.peer = open_peer(its_name, name_bytes, &process)
        self.offers = self.recovers = self.peer != NULL

    def __dealloc__(self):
        self._leave()

    cdef void _leave(self) noexcept:
        cdef Peer *peer = self.peer
        self.peer = NULL
        if peer != NULL:
            with nogil:
                close_peer(peer)

    # ------------------------------------------------------------ the sending side

    cdef bint takes(self, const Slot *slot) noexcept:
        """Whether it accepts a frame; what cannot be registered (ulimit -l) goes on the stream."""
        cdef Slab slab = Slab(NULL, 0)
        cdef const char *data = slot.data
        cdef uint64_t nbytes = slot.nbytes
        if not Path.takes(self, slot):
            return False
        slab.nbytes = slab_of(data, &slab.data)
        with nogil:
            self.taken = register(data, nbytes, slab)
        return self.taken != NULL

    cdef int describe(self, Slot *slot) except -1:
        cdef Place place = Place(remote_address(self.taken, slot.data), self.taken.key)
        memcpy(slot.descriptor, &place, sizeof(place))
        with nogil:
            count_offers(1)
        return 0

    cdef int released(self, FrameSet frames) except -1:
        if self.holds:
            hold(frames, frames.nbytes, partial(_release, frames))
        else:
            _release(frames)
        return 0

    cdef bint fell_back(self) noexcept:
        self.holds = True
        return True             # the receiver waits for seconds: once is enough

    cpdef double retry(self) except? -3.0:
        cdef Peer *peer = self.peer
        cdef bint is_well
        if peer == NULL:
            return STILL_BROKEN
        self.is_proving = not self.is_proving
        with nogil:
            if self.is_proving:
                prove_again(peer)
            else:
                is_well = is_proven(peer)
        if self.is_proving:
            return STALLED_SECONDS
        if not is_well:
            return STILL_BROKEN
        self.holds = False
        return RECOVERED

    # ------------------------------------------------------------ the receiving side

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        cdef FetchJob job
        if self.error and now_ns() - self.error_ns > REFUSED_NS:
            self.error = 0
        if self.peer == NULL or self.error:
            transfer.error = self.error or ENOTCONN
            return NOT_FETCHED
        reap()
        transfer.job = job = new_fetch_job(self.peer, transfer.frames, &self.seal)
        job.subject = transfer
        job.begin(self.queue, self.owner)
        transfer.moved_ns = now_ns()
        return STARTED

    cdef double tend(self, Transfer transfer) except? -3.0:
        cdef int64_t time_ns = now_ns(), moved_bytes
        cdef uint64_t name = (<FetchJob> transfer.job).name
        with nogil:
            moved_bytes = moved_bytes_of(name)
        if moved_bytes < 0:
            return 0.0                  # its completion is already posted
        if moved_bytes > transfer.moved_bytes:
            transfer.moved_bytes, transfer.moved_ns = moved_bytes, time_ns
        if time_ns - transfer.moved_ns < STALLED_SECONDS * 1e9:
            return TEND_SECONDS
        transfer.error = self.error = ETIMEDOUT
        self.error_ns = time_ns
        return ABANDON

    cdef int cancel(self, Transfer transfer) except -1:
        (<FetchJob> transfer.job).cancel(list(transfer.frames.frames))
        return 0

    cdef void close(self) noexcept:
        self.holds = True
        if self.own is not None:
            self.own.revoke()
        self._leave()


def _release(FrameSet frames):
    """Peers cannot read these frames any more."""
    cdef Place place
    cdef uint32_t index
    cdef int count = 0
    with nogil:
        for index in range(frames.count):
            if frames.slots[index].path == PATH_NUMBER:
                memcpy(&place, frames.slots[index].descriptor, sizeof(place))
                release_key(frames.slots[index].data, place.key)
                count += 1
        count_offers(-count)

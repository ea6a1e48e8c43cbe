"""One end of a comm's frames by shared memory.

A frame that lies in the memory file of its sender, or is mapped there from the file of a third
process, is described by its place in that file. The receiver maps it: nothing is copied.

What the receiver has mapped stays as it is, whatever becomes of the sender: the memory file knows
who has what mapped (`dask_fabric.memory.files`). So a fetched frame needs no living sender.
"""

cimport cython
from libc.errno cimport ENOMEM, ESRCH, ESTALE, ETIMEDOUT
from libc.stdint cimport uint32_t, uintptr_t
from libc.string cimport memcpy

from dask_fabric.clock cimport now_ns
from dask_fabric.memory.arrays cimport array_of
from dask_fabric.memory.files cimport (
    MAPPED, STALE, UNKNOWN_ORIGIN, Mapped, Mapping, Place, describe_place, map_place,
)
from dask_fabric.memory.pool cimport buffer_on
from dask_fabric.wire.frames cimport Slot
from dask_fabric.wire.path cimport (
    ABANDON, ARRIVED, FETCH_FAULT, FETCHED, NOT_FETCHED, STARTED, Fetch, Path, Transfer,
)
from dask_fabric.wire.records cimport HOST_MEMORY

NAME = "shm"
NUMBER = 3                      # on the wire

# Until a process is given up whose file is wanted: it answers within a millisecond, unless its
# Python is busy.
TEND_SECONDS = 0.001
PATIENCE_SECONDS = 0.5
SILENT_LIMIT = 1024

# Processes that have not answered in that time. Until one does, no other frame waits for it.
cdef set silent = set()


@cython.auto_pickle(False)
@cython.final
cdef class SHMPath(Path):
    """Frames in memory files of processes of this host.

    Parameters
    ----------
    peer : int
        The peer's process; see `dask_fabric.memory.files.open_file_of_process`.
    attach : callable
        Called with the process of a frame, where its file is not known yet. Returns the reason why
        it cannot be had, or "".
    least_bytes : int
        From which size on a frame is offered.
    """

    def __init__(self, peer, attach, least_bytes):
        Path.__init__(self, NAME, NUMBER, 1 << HOST_MEMORY, sizeof(Place), least_bytes)
        self.needs_living_sender = self.takes_memory = False
        self.peer, self.attach = peer, attach

    cdef bint takes(self, const Slot *slot) noexcept:
        return Path.takes(self, slot) and describe_place(
            <uintptr_t> slot.data, slot.nbytes, self.peer, &self.place_
        )

    cdef int describe(self, Slot *slot) except -1:
        memcpy(slot.descriptor, &self.place_, sizeof(Place))    # `takes` has just found it
        return 0

    cdef object place(self, Slot *slot):
        return None                     # `fetch` maps it

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        return self._map_rest(transfer)

    cdef Fetch _map_rest(self, Transfer transfer) except FETCH_FAULT:
        """Map the frames that are not mapped yet."""
        cdef Slot *slot
        cdef Place place
        cdef Mapping *mapping
        cdef char *data
        cdef Mapped outcome
        cdef uint32_t index
        cdef bint is_waiting = False
        for index in range(transfer.frames.count):
            slot = &transfer.frames.slots[index]
            if slot.data != NULL:
                continue
            memcpy(&place, slot.descriptor, sizeof(Place))
            outcome = map_place(&place, slot.nbytes, &mapping, &data)
            if outcome == UNKNOWN_ORIGIN:
                if transfer.stage == 0 and self.attach(place.origin):
                    transfer.error = ESRCH
                    return NOT_FETCHED
                if place.origin in silent:
                    transfer.error = ETIMEDOUT
                    return NOT_FETCHED
                self.awaited = place.origin
                is_waiting = True
                continue
            if outcome != MAPPED:
                transfer.error = ESTALE if outcome == STALE else ENOMEM
                return NOT_FETCHED
            if silent:
                silent.discard(place.origin)
            slot.data = data
            frame = memoryview(array_of(buffer_on(mapping, data, slot.nbytes)))
            transfer.frames.frames[index] = frame
            transfer.message.message[1][slot.index] = frame
        transfer.stage = 1
        return STARTED if is_waiting else FETCHED

    cdef double tend(self, Transfer transfer) except? -3.0:
        cdef Fetch outcome = self._map_rest(transfer)
        if outcome == FETCHED:
            return ARRIVED
        if outcome == NOT_FETCHED:
            return ABANDON
        if now_ns() - transfer.begin_ns < PATIENCE_SECONDS * 1e9:
            return TEND_SECONDS
        transfer.error = ETIMEDOUT
        if len(silent) == SILENT_LIMIT:
            silent.clear()
        silent.add(self.awaited)
        return ABANDON

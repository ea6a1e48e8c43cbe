"""One end of a comm's frames by shared memory."""

from libc.stdint cimport uint64_t

from dask_fabric.memory.files cimport Place
from dask_fabric.wire.path cimport Fetch, FETCH_FAULT, Path, Transfer

cdef class SHMPath(Path):
    cdef uint64_t peer          # its process, as the exchange knows it
    cdef object attach          # called with a process whose file is not known yet
    cdef uint64_t awaited       # the process whose file a fetch waits for
    cdef Place place_           # of the frame that was found last

    cdef Fetch _map_rest(self, Transfer transfer) except FETCH_FAULT

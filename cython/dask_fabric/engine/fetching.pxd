"""Fetching the frames that a peer offers."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.link cimport Link
from dask_fabric.wire.framing cimport Assembler
from dask_fabric.wire.offers cimport Arrived, Offers

cdef class Fetcher(Link):
    cdef Assembler assembler
    cdef int peer_pid                   # whose memory may be read, for `cma`
    cdef uint64_t ucx_token             # names this side's end of the frames by `ucx`; 0: none
    cdef int ucx_pid                    # the peer's process; 0 where the kernel does not tell
    cdef object fetch_timer
    cdef uint64_t fetch_job
    cdef object devices                 # what is asked of device memory; None without it
    cdef int device_kind                # of that memory, as UCX numbers them
    cdef Arrived fetching               # whose frames are being fetched
    cdef int fetching_path              # by which
    cdef Arrived requested              # whose frames the peer shall send instead
    cdef int64_t fetch_begin_ns
    cdef object process_fd              # of the peer's process, while its end is awaited; or None

    cdef _fetch(self, Arrived arrived)
    cdef _post(self, Offers offers)
    cdef _stop_fetch_timer(self)
    cdef _watch_process(self)
    cdef _unwatch_process(self)
    cdef _end_fetch(self, int error)
    cdef _take_requested(self)

    # what a subclass does
    cdef _answer(self, bytes record)
    cdef _process(self)
    cdef _after_process(self)
    cdef _keep_whole(self)

"""Fetching the frames that a peer offers."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.engine.link cimport Link
from dask_fabric.paths.cma cimport Process
from dask_fabric.wire.framing cimport Assembler
from dask_fabric.wire.offers cimport Arrived, Offers

cdef class Fetcher(Link):
    cdef readonly Assembler assembler
    cdef Process process                # whose memory may be read, for `cma`; or None
    cdef uint64_t ucx_token             # names this side's end of the frames by `ucx`; 0: none
    cdef int ucx_pid                    # the peer's process; 0 where the kernel does not tell
    cdef object fetch_timer
    cdef uint64_t fetch_job
    cdef object devices                 # what is asked of device memory; None without it
    cdef int device_kind                # of that memory, as UCX numbers them
    cdef Arrived fetching               # whose frames are being fetched
    cdef int fetching_path              # by which
    cdef Offers window                  # the frames of it that are fetched now
    cdef uint32_t window_begin          # its first one in the offers of the message
    cdef int64_t moved_bytes            # of the copies, when that was last looked at,
    cdef int64_t moved_ns               # and when they last went on
    cdef Arrived requested              # whose frames the peer shall send instead
    cdef int64_t fetch_begin_ns
    cdef object process_fd              # of the peer's process, while frames are requested; or None

    cdef _fetch(self, Arrived arrived)
    cdef Offers _place_window(self, Arrived arrived)
    cdef bint _has_left(self, Arrived arrived)
    cdef _begin_copies(self)
    cdef _post(self)
    cdef bint _has_lost_sender(self) noexcept
    cdef _request(self, Arrived arrived, int error)
    cdef _take_window_away(self)
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

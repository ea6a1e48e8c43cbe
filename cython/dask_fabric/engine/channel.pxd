"""A channel: messages over one connected socket, in one event loop."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.sender cimport Sender

cdef class Channel(Sender):
    cdef object handshake
    cdef object negotiator              # until both sides have agreed on the paths
    cdef public object choice           # what they agreed on

    cdef _finish_opening(self)
    cdef _let_end_follow(self)
    cdef _end_sending(self)
    cdef uint64_t _offered_bytes(self) noexcept
    cdef dict _traffic_by(self, int path)

"""A channel: messages over one connected socket, in one event loop."""

from dask_fabric.engine.figures cimport Figures
from dask_fabric.engine.sender cimport Sender

cdef class Channel(Sender):
    cdef object handshake
    cdef object negotiator              # until both sides have agreed on the paths
    cdef public object choice           # what they agreed on

    cdef Figures _stream_figures(self)
    cdef Py_ssize_t _held_bytes_by(self, int path) except -1
    cdef Figures _figures_beside(self)
    cdef _finish_opening(self)
    cdef _let_end_follow(self)
    cdef _end_sending(self)

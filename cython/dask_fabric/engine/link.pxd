"""A link: one connected socket in one event loop, and its end."""

from libc.stdint cimport int64_t

from dask_fabric.engine.figures cimport Figures
from dask_fabric.engine.port cimport Port

cdef class Link:
    cdef readonly object loop
    cdef bint is_asyncio                # the loop is asyncio's own, and not uvloop's
    cdef readonly object error          # why it is closed, if for a reason
    cdef readonly bint closed
    cdef readonly object local_sockname
    cdef readonly object peer_sockname
    cdef public object name_ends        # (link) -> the two addresses, as users see them
    cdef object sock
    cdef int fd
    cdef bint is_socket_in_use          # by a thread that is stuck; it is in quarantine
    cdef Port port                      # None where the link is not, or no longer, counted in it
    cdef bint watching_readable
    cdef bint watching_writable
    cdef int64_t blocked_ns             # since when it watches for room in the socket
    cdef readonly Figures stream        # of all that the socket carries
    cdef dict others                    # path -> Figures, of those beside the stream
    cdef public object on_closed        # called once, with the link
    cdef public object on_active        # called once, when anything may be counted, and then None
    cdef object __weakref__

    cdef _begin(self)
    cdef Figures figures_of(self, int path)
    cdef _watch_readable(self, bint watch)
    cdef _watch_on(self)
    cdef _watch_writable(self, bint watch)
    cdef _fail(self, error)
    cdef _release(self)
    cdef _tell_owner(self)
    cdef bint _peer_has_gone(self) noexcept
    cdef _check_open(self)
    cdef _become_active(self)
    cdef _why_closed(self)

    # What a subclass does at the end: before the socket goes, to let go of its use, and after it.
    cdef _send_last(self, bytes reply)
    cdef _stop_jobs(self)
    cdef _settle(self)

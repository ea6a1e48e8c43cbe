"""A channel: messages over one connected socket, in one event loop."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.port cimport Port
from dask_fabric.engine.sendqueue cimport SendQueue
from dask_fabric.paths.linux cimport iovec
from dask_fabric.wire.framing cimport Assembler

cdef class Channel:
    cdef readonly object loop
    cdef readonly object error          # why it is closed, if for a reason
    cdef readonly bint closed
    cdef readonly object local_sockname
    cdef readonly object peer_sockname
    cdef object handshake
    cdef object sock
    cdef int fd
    cdef bint open_counted              # in the port
    cdef Port port
    cdef Assembler assembler
    cdef SendQueue queue
    cdef Py_ssize_t inline_bytes
    cdef Py_ssize_t bulk_bytes
    cdef dict statistics_
    cdef object __weakref__

    # receiving
    cdef object waiter                  # the future of a pending receive() or open()
    cdef bint watching_readable
    cdef uint64_t receive_job

    # sending
    cdef bint corked                    # something was sent in this turn of the loop: batch the rest
    cdef bint watching_writable
    cdef uint64_t send_job
    cdef object drained                 # the future of close(), done when the queue is empty
    cdef object uncork_callback

    # what a subclass with another way to the socket replaces
    cdef Py_ssize_t _read_some(self) except -2
    cdef _write_some(self)

    cdef _process(self)
    cdef _read_bulk(self)
    cdef _write_bulk(self)
    cdef _after_write(self)
    cdef _process_handshake(self)
    cdef _flush(self)
    cdef _watch_readable(self, bint watch)
    cdef _watch_writable(self, bint watch)
    cdef _finish_waiter(self, result)
    cdef _release(self)
    cdef _fail(self, error)
    cdef _send_last(self, bytes reply)
    cdef _drain(self)
    cdef _why_closed(self)
    cdef _check_open(self)

"""A channel: messages over one connected socket, in one event loop."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.link cimport Link
from dask_fabric.engine.sendqueue cimport SendQueue
from dask_fabric.wire.framing cimport Assembler

cdef class Channel(Link):
    cdef object handshake
    cdef Assembler assembler
    cdef SendQueue queue
    cdef Py_ssize_t inline_bytes
    cdef Py_ssize_t bulk_bytes

    # receiving
    cdef object waiter                  # the future of a pending receive() or open()
    cdef uint64_t receive_job
    cdef readonly uint64_t bytes_received
    cdef uint64_t receive_job_count

    # sending
    cdef bint corked                    # something was sent in this turn of the loop: batch more
    cdef uint64_t send_job
    cdef object drained                 # the future of close(), done when the queue is empty
    cdef object uncork_callback
    cdef readonly uint64_t bytes_sent
    cdef uint64_t send_job_count

    # what a subclass with another way to the socket replaces
    cdef Py_ssize_t _read_some(self) except -2
    cdef _write_some(self)

    cdef _process_handshake(self)
    cdef _process(self)
    cdef _read_bulk(self)
    cdef _finish_waiter(self, result)
    cdef _flush(self)
    cdef _write_bulk(self)
    cdef _after_write(self)
    cdef _drain(self)

"""A port: the place of one event loop in the engine."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.mailbox cimport Mailbox
from dask_fabric.linux cimport iovec
from dask_fabric.paths.stream cimport Direction
from dask_fabric.wire.offers cimport Offers

cdef class Port:
    cdef object loop
    cdef Mailbox *mailbox
    cdef dict jobs                  # name -> weak reference to the link that awaits the end
    cdef Py_ssize_t channel_count
    cdef int64_t waited_ns          # of the job whose end is being told: for the loop,
    cdef int64_t busy_ns            # and how long it was busy
    cdef bint lets_go               # soon, of memory in quarantine
    cdef object __weakref__

    cdef open(self)
    cdef close(self)
    cdef int64_t take_waited_ns(self) noexcept
    cdef int64_t take_busy_ns(self) noexcept
    cdef uint64_t submit(
        self, int fd, Direction direction, const iovec *vectors, size_t vector_count, object link
    ) except 0
    cdef uint64_t submit_copies(self, int pid, Offers offers, object link) except 0
    cdef uint64_t submit_transit(
        self, uint64_t token, Offers offers, int device_kind, bint sending, object link
    ) except 0
    cdef cancel(self, uint64_t job, object memory=*, int peer_pid=*, object free=*)
    cdef _let_go_later(self)

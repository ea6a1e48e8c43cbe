"""Whether there is memory for what is about to be received."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    COUNTED_BYTES = 1 << 20     # less is always admitted

cdef enum Answer:
    NO_ANSWER = -1              # an exception was raised
    WAIT = 0                    # until `retry` is called
    ADMITTED = 1
    OVERDUE = 2                 # memory is still short, but it has waited long enough

cpdef uint64_t admit(Py_ssize_t nbytes) except? 0
cpdef void received(uint64_t ticket) noexcept

cdef class Admission:
    cdef object loop
    cdef double patience_seconds
    cdef object timer                   # of a receive that waits
    cdef int64_t short_ns               # since when memory is too short for it; 0: it is not
    cdef int64_t idle_ns                # since when nothing is received; 0: something waits or is
    cdef uint64_t ticket                # of the receive that is under way, or 0
    cdef readonly uint64_t wait_count   # how many receives have waited

    cdef Answer ask(self, Py_ssize_t nbytes, retry) except NO_ANSWER
    cdef void ended(self) noexcept
    cdef cancel(self)

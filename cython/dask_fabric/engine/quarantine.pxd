"""Memory of cancelled jobs that a native thread may still use."""

from libc.stdint cimport uint64_t

cdef keep(uint64_t job, owner, free=*)
cdef bint reap() except -1

"""The `cma` path: a frame is read out of the memory of its sender, a process of this host."""

from libc.stdint cimport uint64_t

cdef int read_memory(int pid, char *data, uint64_t address, size_t nbytes) noexcept nogil
cdef int open_process(int pid) noexcept nogil

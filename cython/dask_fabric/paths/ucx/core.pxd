"""The `ucx` path: frames as active messages, from the sender's memory into the receiver's.

Every function may be called from any thread, also without the GIL, but not from a callback. The
functions that wait (`cancel`, `fail`, `close_endpoint`) must not be called with a lock that a
callback takes. An endpoint is identified by a token, which its own side makes and announces to the
peer.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.paths.ucx.state cimport OnEnd

cdef enum:
    STUCK_NS = 1_000_000_000    # UCX ends cancelled operations at once, or not at all

cdef enum Cancelled:
    WAS_OVER = 0                # it had ended: its callback was called
    CANCELLED = 1               # its memory is free
    UNENDED = 2                 # UCX may still use its memory

cdef bint open_endpoint(
    const char *address, size_t address_length, uint64_t own_token, uint64_t peer_token
) noexcept nogil
cdef void close_endpoint(uint64_t own_token, int64_t patience_ns) noexcept nogil
cdef void fail(uint64_t own_token) noexcept nogil
cdef bint revive_endpoint(uint64_t own_token) noexcept nogil
cdef void break_again(uint64_t own_token) noexcept nogil
cdef int endpoint_error(uint64_t own_token) noexcept nogil
cdef bint is_wired(uint64_t own_token) noexcept nogil
cdef uint64_t offer(
    uint64_t own_token, uint64_t sequence, uint32_t index, void *memory, size_t nbytes,
    int memory_kind, OnEnd on_end, void *context
) noexcept nogil
cdef uint64_t post(
    uint64_t own_token, uint64_t sequence, uint32_t index, void *memory, size_t nbytes,
    int memory_kind, OnEnd on_end, void *context
) noexcept nogil
cdef Cancelled cancel(uint64_t name, int64_t patience_ns) noexcept nogil
cdef size_t abandoned_count() noexcept nogil

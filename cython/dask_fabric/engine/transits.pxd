"""Frames on their way through UCX: one job for all that one message sends or receives so."""

from libc.stdint cimport uint32_t, uint64_t

from dask_fabric.engine.mailbox cimport Mailbox

cdef struct Piece:
    void *memory
    uint64_t nbytes
    uint32_t index              # of the frame in its message

cdef uint64_t submit_transit(
    Mailbox *mailbox, uint64_t token, uint64_t sequence, const Piece *pieces, size_t piece_count,
    bint sending
) except 0
cdef bint cancel_transit(uint64_t name) noexcept nogil
cdef keep_for_ucx(owner, int peer_pid)

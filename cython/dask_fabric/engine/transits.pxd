"""Frames on their way through UCX: one job for all that one message sends or receives so."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.mailbox cimport Mailbox
from dask_fabric.wire.offers cimport Offer

cdef enum:
    PATIENCE_NS = 5_000_000     # a loop waits for UCX no longer; its memory is kept instead

cdef uint64_t TRANSIT_BIT       # of the names of these jobs, and of no others

cdef uint64_t submit_transit(
    Mailbox *mailbox, uint64_t token, uint64_t sequence, const Offer *offers, size_t offer_count,
    int device_kind, bint sending
) except 0
cdef bint cancel_transit(uint64_t name) noexcept nogil
cdef keep_for_ucx(owner, int peer_pid)
cdef bint let_go_for_ucx() except -1

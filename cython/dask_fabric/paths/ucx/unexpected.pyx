"""Unexpected messages: those that arrive before their receive is posted. They are bounded.

All of this needs the worker's lock. A rendezvous costs the receiver only a descriptor; its data
stay at the sender. Other messages stay in UCX's memory until their receive is posted.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from dask_fabric.paths.ucx.libucp cimport ucp
from dask_fabric.paths.ucx.state cimport Endpoint, FrameHeader, Kept
from dask_fabric.paths.ucx.worker cimport worker

cdef enum:
    KEPT_COUNT_LIMIT = 65536    # per endpoint
    KEPT_BYTES_LIMIT = 64 << 20


cdef bint keep(
    Endpoint *endpoint, const FrameHeader *header, void *descriptor, size_t nbytes,
    bint is_rendezvous
) noexcept nogil:
    """Keep a message; False if that exceeds the bounds, or memory is short."""
    cdef Kept *kept
    cdef size_t held_bytes = 0 if is_rendezvous else nbytes
    if (
        endpoint.kept_count >= KEPT_COUNT_LIMIT
        or held_bytes > KEPT_BYTES_LIMIT - endpoint.kept_bytes
    ):
        return False
    kept = <Kept *> malloc(sizeof(Kept))
    if kept == NULL:
        return False
    kept[0] = Kept(NULL, header[0], descriptor, nbytes, is_rendezvous)
    if endpoint.last_kept == NULL:
        endpoint.kept = kept
    else:
        endpoint.last_kept.next = kept
    endpoint.last_kept = kept
    endpoint.kept_count += 1
    endpoint.kept_bytes += held_bytes
    return True


cdef Kept *take_kept(Endpoint *endpoint, uint64_t sequence, uint32_t index) noexcept nogil:
    """Remove the message of that name, which the caller frees; NULL if there is none."""
    cdef Kept *kept = endpoint.kept
    cdef Kept *previous = NULL
    while kept != NULL:
        if kept.header.sequence == sequence and kept.header.index == index:
            _take_out(endpoint, kept, previous)
            return kept
        previous = kept
        kept = kept.next
    return NULL


cdef void _take_out(Endpoint *endpoint, Kept *kept, Kept *previous) noexcept nogil:
    if previous == NULL:
        endpoint.kept = kept.next
    else:
        previous.next = kept.next
    if kept.next == NULL:
        endpoint.last_kept = previous
    endpoint.kept_count -= 1
    if not kept.is_rendezvous:
        endpoint.kept_bytes -= kept.nbytes


cdef void discard(Kept *kept) noexcept nogil:
    """Free a message that was not received."""
    if kept.descriptor != NULL:
        ucp.am_data_release(worker.handle, kept.descriptor)
    free(kept)


cdef void discard_all(Endpoint *endpoint) noexcept nogil:
    cdef Kept *kept
    while endpoint.kept != NULL:
        kept = endpoint.kept
        _take_out(endpoint, kept, NULL)
        discard(kept)

"""Peers of the `ucx` path, their connections, and the endpoints that share them."""

from libc.stdint cimport uint64_t

from dask_fabric.paths.ucx_state cimport Endpoint, Operation, Peer

cdef Endpoint *find_endpoint(uint64_t token) noexcept nogil
cdef bint add_endpoint(
    const char *address, size_t address_length, uint64_t own_token, uint64_t peer_token
) noexcept nogil
cdef void remove_endpoint(Endpoint *endpoint) noexcept nogil
cdef void break_connection(Peer *peer, int error) noexcept nogil
cdef void send_frame(Operation *operation) noexcept nogil
cdef bint register() noexcept nogil

"""Peers of the `ucx` path, their connections, and the endpoints that share them."""

from libc.stdint cimport uint64_t

from dask_fabric.paths.ucx.state cimport Endpoint, Peer

cdef struct Figures:
    size_t endpoint_count
    size_t peer_count           # all peers so far
    size_t connection_count     # open
    size_t kept_count           # frames that arrived before their receive was posted
    size_t break_count          # connections that broke while in use

cdef Figures figures() noexcept nogil
cdef Endpoint *find_endpoint(uint64_t token) noexcept nogil
cdef bint add_endpoint(
    const char *address, size_t address_length, uint64_t own_token, uint64_t peer_token
) noexcept nogil
cdef void use(Endpoint *endpoint) noexcept nogil
cdef void remove_endpoint(Endpoint *endpoint) noexcept nogil
cdef bint any_ready(const Peer *peer) noexcept nogil
cdef void back_off(Peer *peer) noexcept nogil
cdef void break_connection(Peer *peer, int error) noexcept nogil
cdef void break_endpoint(Endpoint *endpoint, int error) noexcept nogil
cdef bint revive(Endpoint *endpoint) noexcept nogil
cdef void greet_anew(Endpoint *endpoint) noexcept nogil
cdef bint register() noexcept nogil

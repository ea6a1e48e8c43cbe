"""Nonces in registered memory, and room for those that are read from peers."""

from libc.stdint cimport uint64_t

from dask_fabric.paths.ofi.regions cimport Registration

cdef enum:
    NONCE_BYTES = 16

# What the receiver of a frame must know; the descriptor on the wire.
cdef struct Place:
    uint64_t address            # a pointer, or an offset in the region: as the provider wants it
    uint64_t key

# The nonce of a peer, and where it can be read.
cdef struct Seal:
    Place place
    char nonce[NONCE_BYTES]

# Room for one nonce; `give_back` takes it.
cdef struct Cell:
    Cell *next
    char *data
    Registration *registration

cdef class Nonce:
    cdef Cell *cell
    cdef readonly bytes value

    cpdef void revoke(self) noexcept

cdef Cell *take_cell() noexcept nogil
cdef void give_back(Cell *cell) noexcept nogil
cdef void drop_cells() noexcept nogil
cdef int copy_seal(Seal *seal, address, key, bytes nonce) except -1

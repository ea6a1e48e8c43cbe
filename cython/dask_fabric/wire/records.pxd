"""The records of the stream: their layout, and packing them."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef enum:
    PREFIX_BYTES = 24
    ENTRY_BYTES = 16
    TEXT_BYTES = 4096           # largest content of an ERROR or PATHS record
    OFFER_BYTES = 64 << 10      # smallest frame that may be offered

cdef enum RecordKind:
    MESSAGE = 1
    ACKNOWLEDGE = 2
    ERROR = 3
    CLOSE = 4
    REQUEST = 5
    FRAMES = 6
    PATHS = 7

# Numbers of paths, in the table of frames and, as bits (1 << path), in sets of paths. The other
# numbers are defined by the providers; docs/wire-protocol.md lists them.
cdef enum:
    STREAM = 0
    PATH_LIMIT = 32             # above the highest
    DESCRIPTOR_BYTES_LIMIT = 24

# Kinds of memory, in the table of frames and, as bits, in sets of kinds.
cdef enum Memory:
    HOST_MEMORY = 0
    CUDA_MEMORY = 1

cdef struct Prefix:
    unsigned char kind
    unsigned char flags
    uint16_t reserved
    uint32_t frame_count
    uint64_t header_bytes
    uint64_t sequence

cdef struct Entry:
    uint64_t nbytes
    unsigned char path
    unsigned char memory
    uint16_t flags
    uint32_t descriptor_bytes

cdef void pack_prefix(
    char *out, RecordKind kind, uint32_t frame_count, uint64_t header_bytes, uint64_t sequence
) noexcept nogil
cdef void pack_entry(
    char *out, uint64_t nbytes, int path, int memory, uint32_t descriptor_bytes
) noexcept nogil
cdef bytes plain_record(RecordKind kind, uint64_t sequence)

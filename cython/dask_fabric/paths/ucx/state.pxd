"""The structures of the `ucx` path; declarations only. `Worker.mutex` guards all of them."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.paths.ucx.libucp cimport EndpointHandle

# Called once, at the end of an operation, by the progress thread, which holds none of our locks.
# `progress` is 0 (complete) or 4 (failed, with an errno), as in `dask_fabric.paths.stream`.
ctypedef void (*OnEnd)(
    void *context, uint64_t operation, int progress, int error, size_t moved_bytes
) noexcept nogil

cdef enum:
    COMPLETE = 0
    FAILED = 4

# On the wire: the ids and headers of active messages.
cdef enum:
    AM_FRAME = 0
    AM_GREETING = 1

cdef struct FrameHeader:
    uint64_t token              # of the receiving endpoint
    uint64_t sequence
    uint32_t index
    uint32_t reserved
    uint64_t nbytes

cdef struct Greeting:
    uint64_t token              # of the greeted endpoint
    uint32_t serial             # number of the sender's connection to this peer, from 1
    uint32_t flags

# Bits of `Greeting.flags`. Who does not know the second takes such a greeting for an answer.
cdef enum:
    IS_ANSWER = 1
    REVIVES = 2                 # the sender was broken, and asks to begin anew

cdef enum OperationState:
    FREE = 0
    HELD = 1                    # an offer that waits for the peer's greeting
    POSTED = 2                  # a receive that waits for its frame
    IN_FLIGHT = 3               # UCX uses its memory
    ENDED = 4                   # its callback is due
    REPORTING = 5               # its callback runs
    ABANDONED = 6               # cancelled, but UCX may use its memory for ever

cdef struct OperationList:
    Operation *first
    Operation *last

cdef struct Operation:
    OperationState state
    bint is_cancelled           # its callback is not called
    uint64_t name               # slot in the lower half, generation in the upper
    Endpoint *endpoint
    OperationList *in_list
    Operation *previous
    Operation *next
    FrameHeader header          # must live until the message is sent
    void *memory
    int memory_kind
    int error
    OnEnd on_end
    void *context

# An unexpected message: it arrived before its receive was posted.
cdef struct Kept:
    Kept *next
    FrameHeader header
    void *descriptor            # UCX's; NULL for an empty frame
    size_t nbytes
    bint is_rendezvous

cdef enum EndpointState:
    WIRING = 0                  # offers are held until the counterpart has greeted
    READY = 1
    BROKEN = 2                  # every operation fails, until it is closed or revived

# One end of the path, for one comm. Endpoints to the same peer share its connection.
cdef struct Endpoint:
    EndpointState state
    int error                   # why it is broken
    uint64_t own_token
    uint64_t peer_token
    uint32_t attempt_count
    bint needs_connection       # it has frames, here or at the counterpart
    bint is_greeting_due
    bint is_answer_due
    bint is_reviving            # until the counterpart has greeted
    Peer *peer
    Endpoint *next_of_peer
    Endpoint *next_of_bucket
    OperationList held
    OperationList posted
    OperationList in_flight
    Kept *kept
    Kept *last_kept
    size_t kept_count
    size_t kept_bytes

# A worker of another process (or of this one). Never freed: UCX numbers the connections to each
# worker, and ours must match.
cdef struct Peer:
    Peer *next
    char *address
    size_t address_length
    EndpointHandle handle       # NULL while there is no connection
    uint32_t serial             # number of the last connection, from 1
    uint32_t target_serial      # number of the peer's last connection
    int error                   # of the connection, not handled yet; 0 if none
    bint is_stuck               # UCX did not end operations of a connection that was broken
    bint is_due                 # the progress thread must attend to it
    int64_t idle_since_ns       # when its last endpoint was closed
    int64_t backoff_until_ns    # it did not greet: until then, endpoints break at first use
    Endpoint *endpoints

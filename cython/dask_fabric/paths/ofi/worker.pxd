"""libfabric in this process: one endpoint, its peers, and the thread that makes it progress."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.jobs.mailbox cimport CompletionNode, Mailbox
from dask_fabric.linux cimport pthread_cond_t, pthread_mutex_t, pthread_t
from dask_fabric.paths.ofi.libfabric cimport (
    CONTEXT_WORDS, Addresses, Domain, Endpoint, Fabric, Queue,
)
from dask_fabric.paths.ofi.nonces cimport Cell, Place, Seal
from dask_fabric.paths.ofi.regions cimport Registration, Slab
from dask_fabric.wire.frames cimport Slot

cdef enum PeerState:
    UNKNOWN = 0                 # nothing was read from it yet
    TRYING = 1                  # its nonce is being read
    PROVEN = 2
    REFUSED = 3                 # `error` says why

# What has failed is not tried again before; less than the pause of a sender.
cdef enum:
    REFUSED_NS = 5_000_000_000

# A process that frames are read from.
cdef struct Peer:
    Peer *next
    char *name                  # its address, as libfabric writes it
    size_t name_bytes
    Seal seal                   # its nonce, and where that is
    Cell *found                 # what was read there
    uint64_t number             # in the table of addresses
    PeerState state
    int error
    int64_t refused_ns          # when it became REFUSED
    bint must_prove             # its nonce is to be read, though no job waits
    int user_count              # paths, and jobs that have not ended
    int64_t idle_since_ns

# One read, of a part of a frame or of a nonce. Never freed: libfabric may keep it for ever.
cdef struct Chunk:
    uint64_t context[CONTEXT_WORDS]     # libfabric's; the first member
    Chunk *next
    Peer *peer
    ReadJob *job                # NULL if it reads the peer's nonce
    size_t nbytes

# All that one transfer fetches.
cdef struct ReadJob:
    ReadJob *next
    uint64_t name
    uint64_t tag
    Peer *peer
    Slot *slots                 # owned
    Registration **destinations     # owned, one for each slot; NULL where none are needed
    size_t slot_count
    size_t index                # slot of the next chunk,
    uint64_t offset             # and where it begins there
    Seal seal                   # the comm's nonce, read after the last chunk
    Cell *found
    bint is_checking            # that is being read
    int in_flight_count         # chunks
    int error
    bint is_cancelled
    size_t moved_bytes
    Mailbox *mailbox
    CompletionNode *node        # owned until it is posted

cdef struct Worker:
    pthread_mutex_t mutex       # guards all below, except where noted
    pthread_cond_t changed      # a job has ended
    bint is_running
    bint is_foreign             # this is a forked child of the process that it belongs to
    bint is_stopping
    Fabric *fabric
    Domain *domain
    Addresses *av
    Queue *cq                   # of the thread alone
    Endpoint *endpoint          # of the thread alone
    int cq_fd                   # -1: there is none, so it is polled while anything goes on
    int wake_fd
    pthread_t thread
    size_t chunk_bytes
    Peer *peers
    bint must_prove             # some peer is to
    Chunk *unused
    ReadJob *first              # jobs that have not ended, in the order of their turns
    ReadJob *abandoned          # cancelled jobs whose memory libfabric may still write to
    uint64_t job_count
    int in_flight_count         # chunks
    int offered_count           # frames of this process that others may be reading
    int64_t active_ns           # when something was last posted or done
    size_t read_bytes

cdef Worker worker

cdef Peer *open_peer(
    const char *name, size_t name_bytes, const Seal *seal
) noexcept nogil
cdef void close_peer(Peer *peer) noexcept nogil
cdef void prove_again(Peer *peer) noexcept nogil
cdef bint is_proven(const Peer *peer) noexcept nogil
cdef void count_offers(int more) noexcept nogil
cdef uint64_t submit(
    Mailbox *mailbox, uint64_t tag, Peer *peer, const Slot *slots, const Slab *slabs,
    size_t slot_count, const Seal *seal, int *error
) noexcept nogil
cdef int64_t moved_bytes_of(uint64_t name) noexcept nogil
cdef bint cancel(uint64_t name) noexcept nogil
cdef bint is_reading(uint64_t name) noexcept nogil

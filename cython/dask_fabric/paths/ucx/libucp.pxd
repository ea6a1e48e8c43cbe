"""The parts of UCX's library libucp that are used: structures, constants, a table of functions.

Written from the API of UCX 1.11 to 1.22: structures only grew at their ends, guarded by masks of
the fields that are set. So the build needs no header and no UCX, and one build works with all these
versions. `open_library` fills the table.
"""

from libc.stdint cimport uint32_t, uint64_t

ctypedef int Status                 # ucs_status_t: 0, 1 (in progress), or a negative error
ctypedef void *StatusPointer        # NULL, a request, or a negative status
ctypedef void *Context
ctypedef void *WorkerHandle
ctypedef void *EndpointHandle
ctypedef void *Config

cdef enum:
    OK = 0
    IN_PROGRESS = 1
    ERROR_BUSY = -15
    ERROR_REJECTED = -23
    ERROR_LAST = -100

cdef enum:
    # ucp_init
    PARAM_FIELD_FEATURES = 1
    PARAM_FIELD_ESTIMATED_NUM_EPS = 1 << 6
    FEATURE_WAKEUP = 1 << 4
    FEATURE_AM = 1 << 6
    # ucp_worker_create, ucp_worker_query
    WORKER_PARAM_FIELD_THREAD_MODE = 1
    THREAD_MODE_SERIALIZED = 1
    WORKER_ATTR_FIELD_ADDRESS = 1 << 1
    WORKER_ATTR_FIELD_MAX_AM_HEADER = 1 << 3
    # ucp_ep_create, ucp_ep_close_nbx
    EP_PARAM_FIELD_REMOTE_ADDRESS = 1
    EP_PARAM_FIELD_ERR_HANDLING_MODE = 1 << 1
    EP_PARAM_FIELD_ERR_HANDLER = 1 << 2
    ERR_HANDLING_MODE_PEER = 1
    EP_CLOSE_FLAG_FORCE = 1
    # active messages
    AM_HANDLER_PARAM_FIELD_ID = 1
    AM_HANDLER_PARAM_FIELD_FLAGS = 1 << 1
    AM_HANDLER_PARAM_FIELD_CB = 1 << 2
    AM_HANDLER_PARAM_FIELD_ARG = 1 << 3
    AM_FLAG_WHOLE_MSG = 1
    AM_FLAG_PERSISTENT_DATA = 1 << 1
    AM_RECV_ATTR_FIELD_REPLY_EP = 1
    AM_RECV_ATTR_FLAG_DATA = 1 << 16
    AM_RECV_ATTR_FLAG_RNDV = 1 << 17
    AM_SEND_FLAG_REPLY = 1
    AM_SEND_FLAG_EAGER = 1 << 1
    AM_SEND_FLAG_RNDV = 1 << 2
    # requests
    OP_ATTR_FIELD_CALLBACK = 1 << 1
    OP_ATTR_FIELD_USER_DATA = 1 << 2
    OP_ATTR_FIELD_FLAGS = 1 << 4
    OP_ATTR_FIELD_MEMORY_TYPE = 1 << 6

cdef enum MemoryKind:
    HOST = 0
    CUDA = 1
    CUDA_MANAGED = 2
    ROCM = 3
    ROCM_MANAGED = 4

# `later_fields` is room for fields of later versions: some functions copy the whole structure.

cdef struct ContextParams:
    uint64_t field_mask
    uint64_t features
    size_t request_size
    void *request_init
    void *request_cleanup
    uint64_t tag_sender_mask
    int mt_workers_shared
    size_t estimated_num_eps
    size_t estimated_num_ppn
    const char *name
    uint64_t later_fields[16]

cdef struct WorkerParams:
    uint64_t field_mask
    int thread_mode
    uint64_t cpu_mask[16]
    unsigned int events
    void *user_data
    int event_fd
    uint64_t flags
    const char *name
    size_t am_alignment
    uint64_t client_id
    uint64_t later_fields[16]

cdef struct WorkerAttributes:
    uint64_t field_mask
    int thread_mode
    uint32_t address_flags
    void *address
    size_t address_length
    size_t max_am_header
    char name[32]
    uint64_t later_fields[16]

cdef struct ErrorHandler:
    void (*callback)(void *argument, EndpointHandle endpoint, Status status) noexcept nogil
    void *argument

cdef struct EndpointParams:
    uint64_t field_mask
    const void *address
    int error_mode
    ErrorHandler error_handler
    void *user_data
    unsigned int flags
    void *socket_address
    uint32_t socket_address_length
    void *connection_request
    const char *name
    uint64_t later_fields[16]

cdef struct ReceiveAttributes:
    uint64_t flags
    EndpointHandle reply_endpoint

ctypedef Status (*ReceiveHandler)(
    void *argument, const void *header, size_t header_length, void *data, size_t length,
    const ReceiveAttributes *attributes
) noexcept nogil

cdef struct HandlerParams:
    uint64_t field_mask
    unsigned int id
    uint32_t flags
    ReceiveHandler callback
    void *argument
    uint64_t later_fields[8]

cdef struct RequestParams:
    uint32_t attribute_mask
    uint32_t flags
    void *request
    void *callback              # of a type that depends on the call
    uint64_t datatype
    void *user_data
    void *reply_buffer
    int memory_type
    void *receive_info
    void *memory_handle
    uint64_t later_fields[8]

cdef struct Ucp:
    const char *(*status_string)(Status status) noexcept nogil
    void (*get_version)(
        unsigned int *major, unsigned int *minor, unsigned int *release
    ) noexcept nogil
    Status (*config_read)(const char *prefix, const char *file, Config *config) noexcept nogil
    void (*config_release)(Config config) noexcept nogil
    Status (*init_version)(
        unsigned int major, unsigned int minor, const ContextParams *params, Config config,
        Context *context
    ) noexcept nogil
    void (*cleanup)(Context context) noexcept nogil
    Status (*worker_create)(
        Context context, const WorkerParams *params, WorkerHandle *worker
    ) noexcept nogil
    Status (*worker_query)(WorkerHandle worker, WorkerAttributes *attributes) noexcept nogil
    void (*worker_release_address)(WorkerHandle worker, void *address) noexcept nogil
    void (*worker_destroy)(WorkerHandle worker) noexcept nogil
    Status (*worker_get_efd)(WorkerHandle worker, int *fd) noexcept nogil
    unsigned int (*worker_progress)(WorkerHandle worker) noexcept nogil
    Status (*worker_arm)(WorkerHandle worker) noexcept nogil
    Status (*worker_signal)(WorkerHandle worker) noexcept nogil
    Status (*worker_set_am_recv_handler)(
        WorkerHandle worker, const HandlerParams *params
    ) noexcept nogil
    Status (*ep_create)(
        WorkerHandle worker, const EndpointParams *params, EndpointHandle *endpoint
    ) noexcept nogil
    StatusPointer (*ep_close_nbx)(
        EndpointHandle endpoint, const RequestParams *params
    ) noexcept nogil
    StatusPointer (*am_send_nbx)(
        EndpointHandle endpoint, unsigned int id, const void *header, size_t header_length,
        const void *data, size_t count, const RequestParams *params
    ) noexcept nogil
    StatusPointer (*am_recv_data_nbx)(
        WorkerHandle worker, void *descriptor, void *data, size_t count,
        const RequestParams *params
    ) noexcept nogil
    void (*am_data_release)(WorkerHandle worker, void *data) noexcept nogil
    void (*request_free)(void *request) noexcept nogil

cdef Ucp ucp                    # all NULL until the library is open

cdef int check(Status status, str call) except -1
cdef int errno_of(Status status) noexcept nogil
cdef Status status_of(StatusPointer pointer) noexcept nogil

"""The parts of libfabric that are used: structures, tables of functions, and constants.

Compiled against the headers of 1.15 to 2.6, every offset and constant here is the same: structures
only grew at their ends. So the build needs no header and no libfabric, and one build works with all
these versions. What is passed has spare room at its end (`later_fields`), and `fi_info` with its
attributes is always allocated by the library.

A call goes through a table of functions in the object: ``endpoint.rma.read(endpoint, ...)``.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    EAGAIN = 11                 # errors are returned as negative numbers
    EAVAIL = 259                # an operation has failed: read its error entry
    MR_LOCAL = 1 << 2           # destinations of reads are registered, too
    MR_VIRT_ADDR = 1 << 4       # a remote address is a pointer, else an offset in its region
    MR_ALLOCATED = 1 << 5
    MR_PROV_KEY = 1 << 6        # the provider chooses the keys of regions
    MR_ENDPOINT = 1 << 9        # a region is bound to an endpoint, and enabled
    ENDPOINT_RDM = 3
    THREAD_SAFE = 1
    RESOURCES_MANAGED = 2
    AV_TABLE = 2
    CQ_FORMAT_TAGGED = 4
    WAIT_NONE = 1
    WAIT_FD = 3
    CONTROL_GET_WAIT = 5
    CONTROL_ENABLE = 6
    BUS_PCI = 1
    CONTEXT_WORDS = 8           # of 8 bytes: what a provider may keep in the context of a call

cdef uint64_t CAP_RMA           # 64-bit constants are no C enums
cdef uint64_t READ
cdef uint64_t RECV
cdef uint64_t TRANSMIT
cdef uint64_t REMOTE_READ
cdef uint64_t SOURCE
cdef uint64_t MODE_CONTEXT
cdef uint64_t ADDRESS_UNKNOWN

# ---------------------------------------------------------------- what the library describes

cdef struct TxAttributes:
    uint64_t caps
    uint64_t mode
    uint64_t op_flags
    uint64_t msg_order
    uint64_t comp_order
    size_t inject_size
    size_t size
    size_t iov_limit
    size_t rma_iov_limit

cdef struct EndpointAttributes:
    int type
    uint32_t protocol
    uint32_t protocol_version
    size_t max_msg_size
    size_t msg_prefix_size
    size_t max_order_raw_size
    size_t max_order_war_size
    size_t max_order_waw_size
    uint64_t mem_tag_format
    size_t tx_ctx_cnt
    size_t rx_ctx_cnt
    size_t auth_key_size
    unsigned char *auth_key

cdef struct DomainAttributes:
    void *domain
    char *name
    int threading
    int control_progress
    int data_progress
    int resource_mgmt
    int av_type
    int mr_mode
    size_t mr_key_size

cdef struct FabricAttributes:
    void *fabric
    char *name
    char *prov_name
    uint32_t prov_version
    uint32_t api_version

cdef struct Info:
    Info *next
    uint64_t caps
    uint64_t mode
    uint32_t addr_format
    size_t src_addrlen
    size_t dest_addrlen
    void *src_addr
    void *dest_addr
    void *handle
    TxAttributes *tx_attr
    void *rx_attr
    EndpointAttributes *ep_attr
    DomainAttributes *domain_attr
    FabricAttributes *fabric_attr
    Card *nic                   # NULL for a domain that is none

cdef struct Card:
    size_t fclass               # of a Fid
    void *context
    void *ops
    void *device_attr
    BusAttributes *bus_attr

cdef struct BusAttributes:
    int type                    # `BUS_PCI`, or what follows means nothing
    uint16_t pci_domain
    uint8_t pci_bus
    uint8_t pci_device
    uint8_t pci_function

# ---------------------------------------------------------------- objects

cdef struct Fid:
    size_t fclass
    void *context
    FidOps *ops

cdef struct FidOps:
    size_t size
    int (*close)(Fid *fid) noexcept nogil
    int (*bind)(Fid *fid, Fid *other, uint64_t flags) noexcept nogil
    int (*control)(Fid *fid, int command, void *argument) noexcept nogil

cdef struct Fabric:
    Fid fid
    FabricOps *ops

cdef struct FabricOps:
    size_t size
    int (*domain)(Fabric *fabric, Info *info, Domain **domain, void *context) noexcept nogil
    void *passive_ep
    void *eq_open
    void *wait_open
    int (*trywait)(Fabric *fabric, Fid **fids, int count) noexcept nogil

cdef struct Domain:
    Fid fid
    DomainOps *ops
    RegionOps *mr

cdef struct DomainOps:
    size_t size
    int (*av_open)(
        Domain *domain, AddressesAttributes *attributes, Addresses **av, void *context
    ) noexcept nogil
    int (*cq_open)(
        Domain *domain, QueueAttributes *attributes, Queue **cq, void *context
    ) noexcept nogil
    int (*endpoint)(
        Domain *domain, Info *info, Endpoint **endpoint, void *context
    ) noexcept nogil

cdef struct RegionOps:
    size_t size
    int (*reg)(
        Fid *domain, const void *data, size_t nbytes, uint64_t access, uint64_t offset,
        uint64_t requested_key, uint64_t flags, Region **region, void *context
    ) noexcept nogil

cdef struct Region:
    Fid fid
    void *mem_desc
    uint64_t key

cdef struct Endpoint:
    Fid fid
    void *ops
    NameOps *cm
    void *msg
    ReadOps *rma

cdef struct NameOps:
    size_t size
    void *setname
    int (*getname)(Fid *endpoint, void *name, size_t *nbytes) noexcept nogil

cdef struct ReadOps:
    size_t size
    ssize_t (*read)(
        Endpoint *endpoint, void *data, size_t nbytes, void *desc, uint64_t peer,
        uint64_t address, uint64_t key, void *context
    ) noexcept nogil

cdef struct Addresses:
    Fid fid
    AddressesOps *ops

cdef struct AddressesOps:
    size_t size
    int (*insert)(
        Addresses *av, const void *names, size_t count, uint64_t *peers, uint64_t flags,
        void *context
    ) noexcept nogil
    void *insertsvc
    void *insertsym
    int (*remove)(
        Addresses *av, uint64_t *peers, size_t count, uint64_t flags
    ) noexcept nogil

cdef struct AddressesAttributes:
    int type
    int rx_ctx_bits
    size_t count
    uint64_t later_fields[8]

cdef struct Queue:
    Fid fid
    QueueOps *ops

cdef struct QueueOps:
    size_t size
    ssize_t (*read)(Queue *cq, void *entries, size_t count) noexcept nogil
    void *readfrom
    ssize_t (*readerr)(Queue *cq, ErrorEntry *entry, uint64_t flags) noexcept nogil

cdef struct QueueAttributes:
    size_t size
    uint64_t flags
    int format
    int wait_obj
    uint64_t later_fields[8]

cdef struct Entry:
    void *context
    uint64_t flags
    size_t nbytes
    void *buffer
    uint64_t data
    uint64_t tag

cdef struct ErrorEntry:
    void *context
    uint64_t flags
    size_t nbytes
    void *buffer
    uint64_t data
    uint64_t tag
    size_t olen
    int error
    int provider_error
    void *error_data
    size_t error_data_nbytes
    uint64_t later_fields[8]

# ---------------------------------------------------------------- the library

cdef struct Library:
    int (*getinfo)(
        uint32_t version, const char *node, const char *service, uint64_t flags, Info *hints,
        Info **info
    ) noexcept nogil
    Info *(*dupinfo)(Info *info) noexcept nogil
    void (*freeinfo)(Info *info) noexcept nogil
    int (*open_fabric)(FabricAttributes *attributes, Fabric **fabric, void *context) noexcept nogil
    uint32_t (*version)() noexcept nogil
    const char *(*strerror)(int error) noexcept nogil

cdef Library fi                 # all NULL until a library is open

cdef int check(ssize_t status, str call) except -1
cdef Info *ask(str provider, str node) except NULL
cdef tuple domain_of(const Info *info)

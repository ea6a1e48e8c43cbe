"""Memory files: memory of this process that other processes of its host can map.

Theory of operation
-------------------
A process has one *memory file* (memfd_create(2)), which it shares with peers: they get a read-only
descriptor. The file is cut into *slabs*; each holds one received array, or one result.

The owner writes a slab through a shared mapping. Before it offers the slab for the first time it
*freezes* it: it maps its own addresses anew, private and copy-on-write. From then on the file keeps
the content of that moment. The owner's later writes go to pages of its own, and so do those of the
peers, who map the file privately too. Nobody ever sees another's writes, and all arrays stay
writeable. A frozen slab can be offered again while no page of the owner's mapping is private; the
kernel's page map tells (`_has_changed`).

A slab is used again when its array is dead and no peer has it mapped. A peer *claims* a slab before
it maps it. Its claims are counters in a table of its own, one for each slab, which the owner can
read. Owner and peer never write to the same memory, and neither waits for the other:

    peer:   claims[slab] += 1;       then read generation[slab]; if it is another one: claims -= 1
    owner:  if the claims of all peers are 0: generation[slab] += 1;   then read the claims again;
            if one is not 0 now: try later

Both steps are sequentially consistent, so that at least one of the two sees the other. A peer that
dies loses its claims: its connection to the path's exchange of descriptors ends, and the owner
drops its table. A peer that lies about its claims can keep slabs from being used again
(`max_bytes` bounds that), or see wrong content itself.

The file of an owner that has died lives on while a peer has a slab of it mapped. Only the peers
can free the other slabs then, and none knows what the others have. So a peer also holds a read lock
(fcntl(2), "open file description locks") on byte N of the file while it has slab N mapped. The
peers of a dead owner take the write lock of each slab, which fails where anybody has it, give the
slab another generation, and free its pages.

A forked child has all mappings of its parent. Before a fork all slabs are frozen, and each mapping
of a peer's slab is claimed once more for the child; what was alive at a fork is not used again
until that child has ended, which a pipe shows. The child itself begins without files. All of that
is done by handlers of C (pthread_atfork): code of Python that runs at a fork may free arrays.

Everything here is under one mutex, and needs no GIL. Native threads that trim the pool call it.
"""

import os
import secrets

from libc.errno cimport EBUSY, EINVAL, ENOMEM, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, memset
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.mman cimport (
    MADV_HUGEPAGE, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ,
    PROT_WRITE, madvise, mmap, munmap,
)
from posix.unistd cimport close

from dask_fabric.atomics cimport (
    add_relaxed, claim, claims_at, generation_at, next_generation, relaxed,
)
from dask_fabric.clock cimport now_ns, thread_ns
from dask_fabric.linux cimport (
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, POLLIN, fallocate, pipe2, poll, pollfd,
    pthread_atfork, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.memory.locks cimport F_RDLCK, F_UNLCK, F_WRLCK, lock_bytes
from dask_fabric.memory.pagemap cimport (
    PAGE_IS_FILE, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, has_page, tells_huge_pages,
)
from dask_fabric.memory.system cimport (
    HUGE_BYTES, PAGE_BYTES, leaves, make_huge_page, map_foreign, move_page_table, reserve,
    unmap_later, whole_pages,
)

from dask_fabric.errors import ConfigError, UnavailableError
from dask_fabric.memory import sealed

cdef enum:
    SLAB_LIMIT = 1 << 16
    TABLE_BYTES = SLAB_LIMIT * 32       # of `Record`
    CLAIMS_BYTES = SLAB_LIMIT * 4
    USUAL_MAP_COUNT = 65530             # vm.max_map_count
    MAP_COUNT_PART = 2                  # others, such as libraries and stacks, need some
    MADV_DONTFORK = 10
    SCAN_COUNT = 16                     # retired slabs that an allocation looks at
    DEFERRED_BYTES = 4 << 20
    AHEAD_BYTES = 1 << 30               # of an array; the rest gets small pages
    HUGE_PAGE_LIMIT_NS = 20_000_000     # of CPU time; 0.3 ms are usual, 5 ms in a new virtual host
    PAUSE_NS = 1_000_000_000

cdef int PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
cdef int64_t FOREVER_NS = 1 << 62
# Sparse, and so large that offsets are never used twice: at 10 GB/s it lasts for a day.
cdef uint64_t FILE_BYTES = <uint64_t> 1 << 50

# What peers can read of a slab.
cdef struct Record:
    uint32_t generation
    uint32_t reserved
    uint64_t offset             # in the file
    uint64_t nbytes             # of whole pages
    uint64_t unused

cdef enum State:
    UNUSED = 0
    WRITABLE = 1                # mapped shared: nobody else has it
    FROZEN = 2                  # mapped private: peers may have it
    RETIRED = 3                 # its array is dead, and peers may have it

cdef struct OwnSlab:
    char *data
    Py_ssize_t capacity_bytes   # as the pool counts
    int size_class
    State state
    uint32_t born               # how many forks there had been,
    uint32_t died               # and how many when its array died
    uint32_t following          # of the retired, or of the unused
    uint64_t huge_bytes         # from its begin on, huge pages were made, or are not wanted
    uint64_t offered_begin      # what peers may have of it
    uint64_t offered_end

# A process whose slabs are mapped here.
cdef struct Origin:
    uint64_t id
    int file_fd
    int table_fd
    const Record *table         # read-only
    int32_t *claims             # this process's
    Py_ssize_t mapping_count    # with those of forked children
    bint is_gone
    int writable_fd             # of the file, once the process is gone; else -1
    Record *writable_table      # NULL until then
    Origin *following

# A process that maps slabs of this one.
cdef struct Client:
    uint64_t id
    uint64_t key                # of the connection
    const int32_t *claims       # read-only
    Client *following

cdef struct Mapping:
    char *base
    uint64_t nbytes
    Origin *origin              # NULL in a forked child: the claim is its parent's
    uint64_t origin_id
    uint32_t slab
    uint32_t generation
    uint64_t offset             # of `base` in the slab
    Mapping *previous
    Mapping *following

# Memory that may be offered, in the order of its addresses.
cdef struct Range:
    uintptr_t begin
    uintptr_t end
    uint32_t slab               # of this process; else
    Mapping *mapping

# A slab of a peer that is claimed for a forked child.
cdef struct Claim:
    Origin *origin
    uint32_t slab

# A forked child, and what is claimed for it.
cdef struct Child:
    int fd                      # its end is seen here
    uint32_t number
    Py_ssize_t claim_count
    Claim *claims
    Child *following

cdef struct Figures:
    Py_ssize_t most_bytes       # of `slab_bytes`; 0 where nothing is to lie in the file
    Py_ssize_t slab_count       # in use, idle in the pool, or retired
    Py_ssize_t slab_bytes
    Py_ssize_t retired_count    # dead, and still mapped by peers
    Py_ssize_t retired_bytes
    Py_ssize_t frozen_count     # ever
    Py_ssize_t reused_count     # ever
    Py_ssize_t mapping_count    # of peers' slabs
    Py_ssize_t mapped_bytes
    Py_ssize_t client_count
    Py_ssize_t origin_count

cdef pthread_mutex_t mutex
pthread_mutex_init(&mutex, NULL)

cdef uint64_t own_id = 0
cdef int file_fd = -1
cdef int table_fd = -1
cdef int pagemap_fd = -1
cdef bint aligns_mappings = False        # of peers' files, to huge pages
cdef Record *table = NULL
cdef OwnSlab *slabs = NULL
cdef uint32_t used_numbers = 1          # 0 is none
cdef uint32_t unused = 0                # the first of those that were used before
cdef uint32_t retired = 0               # the first of a queue,
cdef uint32_t last_retired = 0          # and its last
cdef uint64_t next_offset = 0
cdef Client *clients = NULL
cdef Origin *origins = NULL
cdef Mapping *mappings = NULL
cdef Child *children = NULL
cdef Py_ssize_t child_count = 0
cdef int child_end = -1                 # of the fork that is under way
cdef int[2] spare_ends = [-1, -1]       # of a pipe: for a fork when no descriptor is left
# The first and the last fork whose child cannot be watched: it counts as alive for ever.
cdef uint32_t first_lost_fork = 0
cdef uint32_t last_lost_fork = 0
cdef Py_ssize_t map_limit = USUAL_MAP_COUNT // MAP_COUNT_PART
cdef Range *ranges = NULL
cdef Py_ssize_t range_count = 0
cdef Py_ssize_t range_capacity = 0
cdef Py_ssize_t huge_pages_from_ns = 0  # when they may be made
cdef Py_ssize_t made_huge_pages = 0
cdef uint32_t fork_count = 0
cdef uint32_t epoch = 1                 # another one in each forked child
cdef bint is_on = False
cdef bint is_paused = False
cdef Py_ssize_t least_bytes = 1 << 20
cdef Py_ssize_t max_bytes = 0
cdef Figures figures
memset(&figures, 0, sizeof(figures))


cdef void lock() noexcept nogil:
    pthread_mutex_lock(&mutex)


cdef void unlock() noexcept nogil:
    pthread_mutex_unlock(&mutex)


cdef uint32_t current_epoch() noexcept nogil:
    return epoch


cdef bint serves(Py_ssize_t nbytes) noexcept nogil:
    """Whether memory of this size is to lie in the file."""
    return is_on and not is_paused and nbytes >= least_bytes


cdef bint has_room(Py_ssize_t mapped_bytes) noexcept nogil:
    """Whether the file may become so much larger; a guess, without the lock."""
    cdef Py_ssize_t slab_bytes = relaxed(&figures.slab_bytes) + mapped_bytes
    return slab_bytes <= relaxed(&max_bytes) and not _has_all_maps()


cdef bint _has_all_maps() noexcept nogil:
    """Whether this process has as many mappings as it should: the kernel limits them."""
    cdef Py_ssize_t own_count = relaxed(&figures.slab_count) - relaxed(&figures.retired_count)
    return own_count + relaxed(&figures.mapping_count) >= map_limit


cdef bint needs_care() noexcept nogil:
    """Whether `next_reusable` may have something to do, now or later."""
    return relaxed(&figures.retired_count) != 0 or relaxed(&child_count) != 0


# ---------------------------------------------------------------- what lies where

cdef Py_ssize_t _first_behind(uintptr_t address) noexcept nogil:
    """The index of the first range that begins behind an address."""
    cdef Py_ssize_t low = 0, high = range_count, middle
    while low < high:
        middle = (low + high) // 2
        if ranges[middle].begin <= address:
            low = middle + 1
        else:
            high = middle
    return low


cdef Range *_range_of(uintptr_t address, uint64_t nbytes) noexcept nogil:
    """The range in which all these bytes lie; NULL where there is none."""
    cdef Py_ssize_t index = _first_behind(address) - 1
    if index < 0 or address >= ranges[index].end or nbytes > ranges[index].end - address:
        return NULL
    return &ranges[index]


cdef bint _add_range(char *data, uint64_t nbytes, uint32_t slab, Mapping *mapping) noexcept nogil:
    """False where there is no memory for it."""
    global ranges, range_count, range_capacity
    cdef Range *grown
    cdef Py_ssize_t index
    if range_count == range_capacity:
        grown = <Range *> realloc(ranges, (2 * range_capacity + 64) * sizeof(Range))
        if grown == NULL:
            return False
        ranges, range_capacity = grown, 2 * range_capacity + 64
    index = _first_behind(<uintptr_t> data)
    memmove(&ranges[index + 1], &ranges[index], (range_count - index) * sizeof(Range))
    ranges[index] = Range(<uintptr_t> data, <uintptr_t> data + nbytes, slab, mapping)
    add_relaxed(&range_count, 1)
    return True


cdef void _remove_range(char *data) noexcept nogil:
    global range_count
    cdef Py_ssize_t index = _first_behind(<uintptr_t> data) - 1
    if index < 0 or ranges[index].begin != <uintptr_t> data:
        return
    add_relaxed(&range_count, -1)
    memmove(&ranges[index], &ranges[index + 1], (range_count - index) * sizeof(Range))


# ---------------------------------------------------------------- slabs of this process

cdef uint32_t obtain_slab(
    Py_ssize_t capacity_bytes, Py_ssize_t mapped_bytes, int size_class, char **data) noexcept nogil:
    """Give fresh memory of the file, of whole pages; 0 where there is none to be had.

    Parameters
    ----------
    capacity_bytes, size_class
        As the pool counts.
    mapped_bytes
        So much is mapped: a multiple of the page size.
    """
    cdef uint32_t number = 0
    lock()
    if is_on and has_room(mapped_bytes):
        number = _new_number()
    if number:
        data[0] = _open_slab(number, capacity_bytes, mapped_bytes, size_class)
        if data[0] == NULL:
            _put_back(number)
            number = 0
    unlock()
    return number


cdef uint32_t _new_number() noexcept nogil:
    global unused, used_numbers
    cdef uint32_t number = unused
    if number:
        unused = slabs[number].following
        return number
    if used_numbers == SLAB_LIMIT:
        return 0
    used_numbers += 1
    return used_numbers - 1


cdef void _put_back(uint32_t number) noexcept nogil:
    global unused
    slabs[number].state = UNUSED
    slabs[number].following = unused
    unused = number


cdef char *_open_slab(
    uint32_t number, Py_ssize_t capacity_bytes, Py_ssize_t mapped_bytes, int size_class
) noexcept nogil:
    global next_offset
    cdef OwnSlab *slab = &slabs[number]
    cdef uint64_t step_bytes = HUGE_BYTES if mapped_bytes >= HUGE_BYTES else PAGE_BYTES
    cdef uint64_t offset = (next_offset + step_bytes - 1) // step_bytes * step_bytes
    if offset + mapped_bytes > FILE_BYTES:
        return NULL
    slab.capacity_bytes, slab.size_class = capacity_bytes, size_class
    slab.huge_bytes = 0
    table[number].offset, table[number].nbytes = offset, mapped_bytes
    if not _map_shared(number):
        return NULL
    next_offset = offset + mapped_bytes
    add_relaxed(&figures.slab_count, 1)
    add_relaxed(&figures.slab_bytes, mapped_bytes)
    return slab.data


cdef bint _map_shared(uint32_t number) noexcept nogil:
    """Map a slab that nobody else has, for its owner to write."""
    cdef OwnSlab *slab = &slabs[number]
    cdef Record *record = &table[number]
    cdef char *place = reserve(record.nbytes) if record.nbytes >= HUGE_BYTES else NULL
    cdef int flags = MAP_SHARED | MAP_FIXED if place != NULL else MAP_SHARED
    cdef void *data = _map_file(place, record, flags)
    if data == MAP_FAILED:
        if place != NULL:
            munmap(place, record.nbytes)
        return False
    if not _add_range(<char *> data, record.nbytes, number, NULL):
        munmap(data, record.nbytes)
        return False
    slab.data = <char *> data
    slab.state = WRITABLE
    slab.born = fork_count
    slab.offered_begin, slab.offered_end = FILE_BYTES, 0
    return True


cdef void *_map_file(char *place, const Record *record, int flags) noexcept nogil:
    cdef void *data = mmap(
        place, record.nbytes, PROT_READ | PROT_WRITE, flags, file_fd, record.offset
    )
    # Of use where the host allows it for memory files (shmem_enabled), which is not the default.
    if data != MAP_FAILED and record.nbytes >= HUGE_BYTES:
        madvise(data, record.nbytes, MADV_HUGEPAGE)
    return data


cdef bint keeps_pages(uint32_t number, uint32_t its_epoch) noexcept nogil:
    """Whether a slab in use has the same pages until `on_leaving` is called; with the GIL."""
    return its_epoch == epoch and slabs[number].state == WRITABLE


cdef bint release_slab(
    uint32_t number, uint32_t its_epoch, char *data, Py_ssize_t mapped_bytes) noexcept nogil:
    """The array is dead; True where its memory can be used again at once, as it is.

    Else nothing of it is left in the address space.
    """
    cdef bint is_free
    lock()
    if its_epoch != epoch:              # the parent's: this child has its mapping alone
        unlock()
        munmap(data, mapped_bytes)
        return False
    is_free = slabs[number].state == WRITABLE
    if not is_free:
        _retire(number)
    unlock()
    if not is_free:
        munmap(data, mapped_bytes)
    return is_free


cdef void _retire(uint32_t number) noexcept nogil:
    """Others may have the slab mapped: it is used again when they have it no more."""
    cdef OwnSlab *slab = &slabs[number]
    slab.state = RETIRED
    slab.died = fork_count
    _append_retired(number)
    add_relaxed(&figures.retired_count, 1)
    figures.retired_bytes += table[number].nbytes
    _remove_range(slab.data)
    if not _is_in_child(slab):
        _punch_around(number)


cdef void _append_retired(uint32_t number) noexcept nogil:
    global retired, last_retired
    slabs[number].following = 0
    if last_retired:
        slabs[last_retired].following = number
    else:
        retired = number
    last_retired = number


cdef uint32_t _take_retired() noexcept nogil:
    """Take the first of the queue; 0 where it is empty."""
    global retired, last_retired
    cdef uint32_t number = retired
    if number:
        retired = slabs[number].following
        if not retired:
            last_retired = 0
    return number


cdef void _punch_around(uint32_t number) noexcept nogil:
    """Free what was never offered of a dead array, if that is most of it; in whole huge pages."""
    cdef OwnSlab *slab = &slabs[number]
    cdef Record *record = &table[number]
    cdef uint64_t begin = slab.offered_begin // HUGE_BYTES * HUGE_BYTES
    cdef uint64_t end = (slab.offered_end + HUGE_BYTES - 1) // HUGE_BYTES * HUGE_BYTES
    end = min(end, record.nbytes)
    if begin >= end:
        begin = end = record.nbytes     # only a fork has frozen it
    if 2 * (begin + record.nbytes - end) > record.nbytes:
        fallocate(file_fd, PUNCH, record.offset, begin)
        fallocate(file_fd, PUNCH, record.offset + end, record.nbytes - end)
        slab.huge_bytes = 0


cdef void reopen_slab(uint32_t number, uint32_t its_epoch) noexcept nogil:
    """An idle slab of the pool is used again; it may have been frozen by a fork since."""
    cdef OwnSlab *slab = &slabs[number]
    lock()
    if its_epoch == epoch and slab.state == FROZEN:
        slab.died = fork_count
        _reap_children()
        if not _is_in_child(slab) and _map_file(
            slab.data, &table[number], MAP_SHARED | MAP_FIXED
        ) != MAP_FAILED:
            slab.state = WRITABLE
            slab.born = fork_count
            slab.offered_begin, slab.offered_end = FILE_BYTES, 0
    unlock()


cdef bint _retire_frozen(uint32_t number) noexcept nogil:
    """Retire an idle slab that a fork has frozen: a child may have it mapped."""
    cdef bint is_frozen
    lock()
    is_frozen = slabs[number].state == FROZEN
    if is_frozen:
        _retire(number)
    unlock()
    return is_frozen


cdef void free_slab(
    uint32_t number, uint32_t its_epoch, char *data, Py_ssize_t mapped_bytes) noexcept nogil:
    """Give the memory of a slab that no peer has back to the system."""
    if its_epoch != epoch or _retire_frozen(number):
        munmap(data, mapped_bytes)
        return
    lock()
    slabs[number].state = UNUSED        # a fork must not freeze what is about to be unmapped
    _remove_range(data)
    unlock()
    leaves(data, mapped_bytes)
    munmap(data, mapped_bytes)          # may take milliseconds, and so may the next
    _punch(number)
    lock()
    _forget(number)
    unlock()


cdef void _punch(uint32_t number) noexcept nogil:
    """Free the pages of the file that a slab has."""
    cdef Record *record = &table[number]
    fallocate(file_fd, PUNCH, record.offset, record.nbytes)


cdef void _forget(uint32_t number) noexcept nogil:
    """Let the number of a slab without pages be used for another one."""
    add_relaxed(&figures.slab_count, -1)
    add_relaxed(&figures.slab_bytes, -<Py_ssize_t> table[number].nbytes)
    next_generation(&table[number].generation)
    _put_back(number)


cdef uint32_t next_reusable(
    char **data, Py_ssize_t *capacity_bytes, int *size_class, bint looks_at_all) noexcept nogil:
    """Take a retired slab that nobody has any more, and map it again; 0 where none was found.

    A peer that has a slab mapped may pass it on to another one, so its generation changes only when
    no peer has it. Unless it is to look at all of them, this looks at some, in turn.
    """
    cdef uint32_t number = 0
    cdef Py_ssize_t left
    lock()
    left = figures.retired_count if looks_at_all else min(figures.retired_count, SCAN_COUNT)
    _reap_children()
    while left > 0:
        left -= 1
        number = _take_retired()
        if not number or _takes_back(number):
            break
        _append_retired(number)
        number = 0
    if number:
        add_relaxed(&figures.retired_count, -1)
        figures.retired_bytes -= table[number].nbytes
        if _map_shared(number):
            figures.reused_count += 1
            data[0] = slabs[number].data
            capacity_bytes[0] = slabs[number].capacity_bytes
            size_class[0] = slabs[number].size_class
        else:
            _punch(number)
            _forget(number)
            number = 0
    unlock()
    return number


cdef bint _takes_back(uint32_t number) noexcept nogil:
    """Whether nobody has a retired slab; nobody can claim it then."""
    if _is_in_child(&slabs[number]) or _is_claimed(number):
        return False
    next_generation(&table[number].generation)
    return not _is_claimed(number)


cdef bint _is_claimed(uint32_t number) noexcept nogil:
    cdef Client *client = clients
    while client != NULL:
        if claims_at(&client.claims[number]) != 0:
            return True
        client = client.following
    return False


cdef bint _is_in_child(OwnSlab *slab) noexcept nogil:
    """Whether a forked child that lives may have the slab mapped."""
    cdef Child *child = children
    if slab.born < last_lost_fork and first_lost_fork <= slab.died and first_lost_fork:
        return True
    while child != NULL:
        if slab.born < child.number <= slab.died:
            return True
        child = child.following
    return False


cdef bint _freeze(uint32_t number, bint may_defer=True) noexcept nogil:
    """Keep the content of a slab as it is, in the file; writes go elsewhere from now on.

    To drop the page table of the shared mapping takes 100 us for each MiB. So a large one is moved
    away first, whole pages of the table at a time, and a thread drops it.
    """
    cdef OwnSlab *slab = &slabs[number]
    cdef Record *record = &table[number]
    cdef char *alias = NULL
    cdef void *data
    leaves(slab.data, record.nbytes)
    if may_defer and record.nbytes >= DEFERRED_BYTES:
        alias = move_page_table(slab.data, record.nbytes)
    # As in `map_foreign`: a refusal may leave a gap here too.
    data = _map_file(slab.data, record, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE)
    if alias != NULL:
        unmap_later(alias, record.nbytes)
    if data == MAP_FAILED:
        return False
    slab.state = FROZEN
    figures.frozen_count += 1
    return True


# ---------------------------------------------------------------- huge pages

cdef void make_huge_pages(const char *data, uint64_t nbytes) noexcept nogil:
    """Put huge pages under memory that is about to be written, if it is of this process's file.

    With small pages NumPy takes up to 1.4 times as long, and peers have a page fault for every 64
    KiB. But pages that are made by the first write to them are small, where the host does not allow
    other ones for files. Threads may call this for parts of the same memory.
    """
    cdef Range *found
    cdef char *page = NULL
    cdef char *end = NULL
    if relaxed(&range_count) == 0 or now_ns() < relaxed(&huge_pages_from_ns):
        return
    lock()
    found = _range_of(<uintptr_t> data, nbytes)
    if found != NULL and found.slab:
        end = _take_small_part(found.slab, data + nbytes, &page)
    unlock()
    while page < end and _make_huge_page(page):
        page += HUGE_BYTES


cdef bint _make_huge_page(char *page) noexcept nogil:
    """Whether to go on with the next one."""
    cdef int64_t begin_ns = thread_ns(), pause_ns = 0
    cdef int error = make_huge_page(page)
    if error == EINVAL and relaxed(&made_huge_pages) == 0:
        pause_ns = FOREVER_NS               # this kernel cannot, or must not
    elif error == ENOMEM or error == EBUSY or thread_ns() - begin_ns > HUGE_PAGE_LIMIT_NS:
        pause_ns = PAUSE_NS                 # none is free, or other memory was moved for it
    if pause_ns or not error:
        lock()
        add_relaxed(&made_huge_pages, not error)
        if pause_ns:
            add_relaxed(&huge_pages_from_ns, now_ns() + pause_ns - huge_pages_from_ns)
        unlock()
    return pause_ns == 0


cdef char *_take_small_part(uint32_t number, const char *until, char **begin) noexcept nogil:
    """Give the end of what has no huge pages yet, up to the one in which `until` lies."""
    cdef OwnSlab *slab = &slabs[number]
    cdef uint64_t whole_bytes = (
        min(table[number].nbytes, <uint64_t> AHEAD_BYTES) // HUGE_BYTES * HUGE_BYTES
    )
    cdef uint64_t end_bytes = (until - slab.data + HUGE_BYTES - 1) // HUGE_BYTES * HUGE_BYTES
    end_bytes = min(end_bytes, whole_bytes)
    begin[0] = slab.data + slab.huge_bytes
    if slab.state == WRITABLE and slab.huge_bytes < end_bytes:
        slab.huge_bytes = end_bytes
    return slab.data + slab.huge_bytes


cdef void keep_small_pages(uint32_t number, uint32_t its_epoch) noexcept nogil:
    """Leave a slab with small pages: each becomes resident as it is written."""
    lock()
    if its_epoch == epoch:              # else it is the parent's
        slabs[number].huge_bytes = table[number].nbytes
    unlock()


# ---------------------------------------------------------------- what was changed

cdef bint _has_changed(uintptr_t address, uint64_t nbytes) noexcept nogil:
    """Whether a page of a private mapping was written, and is not the file's any more.

    True also where the kernel does not tell. A page that was written is anonymous.
    """
    return pagemap_fd < 0 or has_page(
        pagemap_fd, address, nbytes, PAGE_IS_FILE, PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    )


# ---------------------------------------------------------------- offered, and mapped by peers

cdef bint describe_place(
    uintptr_t address, uint64_t nbytes, uint64_t peer, Place *place) noexcept nogil:
    """Say where a frame lies, for a peer to map it; False where it cannot.

    A slab of this process is frozen by this.

    Parameters
    ----------
    address, nbytes
        Of the frame, which stays alive meanwhile.
    peer
        The process that is to map it: it must have this process's file already.
    """
    cdef Range *found
    cdef bint is_shareable = False, may_have_changed = True
    lock()
    found = _range_of(address, nbytes)
    if found != NULL and found.slab:
        if _has_client(peer):
            place[0] = Place(
                own_id, found.slab, table[found.slab].generation, address - found.begin
            )
            is_shareable = True
            if slabs[found.slab].state == WRITABLE:
                is_shareable = _freeze(found.slab)
                may_have_changed = False
            _note_offer(&slabs[found.slab], address - found.begin, nbytes)
    elif found != NULL and found.mapping.origin != NULL and not found.mapping.origin.is_gone:
        place[0] = Place(
            found.mapping.origin_id, found.mapping.slab, found.mapping.generation,
            found.mapping.offset + (address - found.begin),
        )
        is_shareable = True
    unlock()
    return is_shareable and not (may_have_changed and _has_changed(address, nbytes))


cdef void _note_offer(OwnSlab *slab, uint64_t offset, uint64_t nbytes) noexcept nogil:
    slab.offered_begin = min(slab.offered_begin, offset)
    slab.offered_end = max(slab.offered_end, offset + nbytes)


cdef bint _has_client(uint64_t peer) noexcept nogil:
    cdef Client *client = clients
    while client != NULL:
        if client.id == peer:
            return True
        client = client.following
    return False


cdef Origin *_origin_of(uint64_t id) noexcept nogil:
    cdef Origin *origin = origins
    while origin != NULL and (origin.id != id or origin.is_gone):
        origin = origin.following
    return origin


cdef Mapped map_place(
    const Place *place, uint64_t nbytes, Mapping **mapping, char **data) noexcept nogil:
    """Map a frame of a peer, which may say anything.

    The mapping stays as it is, whatever becomes of the peer, until `unmap`.
    """
    cdef Origin *origin
    cdef const Record *record
    cdef uint64_t begin, lead_bytes
    cdef Mapped outcome = STALE
    lock()
    origin = _origin_of(place.origin)
    if origin == NULL:
        unlock()
        return UNKNOWN_ORIGIN
    if 0 < place.slab < SLAB_LIMIT and not _has_all_maps() and _claim(origin, place.slab):
        record = &origin.table[place.slab]
        if generation_at(&record.generation) == place.generation:
            outcome = NOT_MAPPED
            begin = record.offset + place.offset
            if (
                place.offset <= FILE_BYTES and nbytes <= FILE_BYTES and begin <= FILE_BYTES
                and begin + nbytes <= FILE_BYTES and place.offset + nbytes <= record.nbytes
            ):
                lead_bytes = begin % PAGE_BYTES
                mapping[0] = _map_claimed(origin, place, begin - lead_bytes, lead_bytes + nbytes)
                if mapping[0] != NULL:
                    mapping[0].offset = place.offset - lead_bytes
                    data[0] = mapping[0].base + lead_bytes
                    outcome = MAPPED
        if outcome != MAPPED:
            _unclaim(origin, place.slab)
    unlock()
    return outcome


cdef bint _claim(Origin *origin, uint32_t slab) noexcept nogil:
    """Claim a slab of a peer; False where another peer frees it, as its owner is dead."""
    if claims_at(&origin.claims[slab]) == 0 and not lock_bytes(origin.file_fd, slab, 1, F_RDLCK):
        return False
    claim(&origin.claims[slab], 1)
    return True


cdef void _unclaim(Origin *origin, uint32_t slab) noexcept nogil:
    claim(&origin.claims[slab], -1)
    if claims_at(&origin.claims[slab]) == 0:
        lock_bytes(origin.file_fd, slab, 1, F_UNLCK)
        if origin.is_gone:
            _free_of_dead(origin, slab)


cdef void _free_of_dead(Origin *origin, uint32_t slab) noexcept nogil:
    """Free the pages of a slab whose owner is dead, if no process has it mapped."""
    cdef const Record *record = &origin.table[slab]
    if origin.writable_table == NULL or not lock_bytes(origin.writable_fd, slab, 1, F_WRLCK):
        return
    next_generation(&origin.writable_table[slab].generation)
    fallocate(origin.writable_fd, PUNCH, record.offset, record.nbytes)
    lock_bytes(origin.writable_fd, slab, 1, F_UNLCK)


cdef Mapping *_map_claimed(
    Origin *origin, const Place *place, uint64_t begin, uint64_t nbytes) noexcept nogil:
    global mappings
    cdef Mapping *mapping
    cdef uint64_t mapped_bytes = whole_pages(nbytes)
    cdef void *base = map_foreign(origin.file_fd, begin, mapped_bytes, aligns_mappings)
    if base == MAP_FAILED:
        return NULL
    mapping = <Mapping *> calloc(1, sizeof(Mapping))
    if mapping == NULL or not _add_range(<char *> base, mapped_bytes, 0, mapping):
        free(mapping)
        munmap(base, mapped_bytes)
        return NULL
    mapping.base, mapping.nbytes = <char *> base, mapped_bytes
    mapping.origin, mapping.origin_id = origin, origin.id
    mapping.slab, mapping.generation = place.slab, place.generation
    mapping.following = mappings
    if mappings != NULL:
        mappings.previous = mapping
    mappings = mapping
    origin.mapping_count += 1
    add_relaxed(&figures.mapping_count, 1)
    figures.mapped_bytes += mapped_bytes
    return mapping


cdef void unmap(Mapping *mapping) noexcept nogil:
    """Nothing here needs a frame of a peer any more."""
    global mappings
    cdef Origin *origin = mapping.origin
    lock()
    _remove_range(mapping.base)
    if mapping.previous != NULL:
        mapping.previous.following = mapping.following
    else:
        mappings = mapping.following
    if mapping.following != NULL:
        mapping.following.previous = mapping.previous
    munmap(mapping.base, mapping.nbytes)
    add_relaxed(&figures.mapping_count, -1)
    figures.mapped_bytes -= mapping.nbytes
    if origin != NULL:
        _unclaim(origin, mapping.slab)
        origin.mapping_count -= 1
        _drop_if_unused(origin)
    _reap_children()
    unlock()
    free(mapping)


cdef void _drop_if_unused(Origin *origin) noexcept nogil:
    """Forget a process that is gone, with its last mapping."""
    cdef Origin **link = &origins
    if not origin.is_gone or origin.mapping_count:
        return
    while link[0] != origin:
        link = &link[0].following
    link[0] = origin.following
    figures.origin_count -= 1
    _close_origin(origin)


cdef void _close_origin(Origin *origin) noexcept nogil:
    munmap(<void *> origin.table, TABLE_BYTES)
    munmap(origin.claims, CLAIMS_BYTES)
    if origin.writable_table != NULL:
        munmap(origin.writable_table, TABLE_BYTES)
        close(origin.writable_fd)
    close(origin.file_fd)
    close(origin.table_fd)
    free(origin)


# ---------------------------------------------------------------- forks

cdef void _reap_children() noexcept nogil:
    """Give up the claims of forked children that have ended."""
    cdef Child **link = &children
    cdef Child *child
    cdef Origin *origin
    cdef Py_ssize_t index
    cdef pollfd state
    while link[0] != NULL:
        child = link[0]
        state = pollfd(child.fd, POLLIN, 0)
        if poll(&state, 1, 0) == 0:
            link = &child.following
            continue
        for index in range(child.claim_count):
            origin = child.claims[index].origin
            _unclaim(origin, child.claims[index].slab)
            origin.mapping_count -= 1
            _drop_if_unused(origin)
        link[0] = child.following
        add_relaxed(&child_count, -1)
        close(child.fd)
        free(child.claims)
        free(child)


cdef void _prepare_fork() noexcept nogil:
    """Freeze all slabs, and claim all mappings for the child; the lock is held over the fork."""
    global fork_count, children, child_end, first_lost_fork, last_lost_fork
    cdef Child *child
    cdef Mapping *mapping = mappings
    cdef uint32_t number
    lock()
    child_end = -1
    if own_id == 0 and origins == NULL:
        return
    fork_count += 1
    for number in range(1, used_numbers):
        if slabs[number].state == WRITABLE and not _freeze(number, False):
            # Rather a child without the array than one that writes into its parent's.
            madvise(slabs[number].data, table[number].nbytes, MADV_DONTFORK)
    child = _new_child()
    if child == NULL:                   # nobody will know when it ends
        first_lost_fork, last_lost_fork = first_lost_fork or fork_count, fork_count
    while mapping != NULL:
        if mapping.origin != NULL:
            mapping.origin.mapping_count += 1
            _claim(mapping.origin, mapping.slab)
            if child != NULL:
                child.claims[child.claim_count] = Claim(mapping.origin, mapping.slab)
                child.claim_count += 1
        mapping = mapping.following


cdef Child *_new_child() noexcept nogil:
    """Note that a child is about to be forked; NULL where there is no memory or descriptor."""
    global children, child_end
    cdef int[2] ends
    cdef Child *child = <Child *> calloc(1, sizeof(Child))
    if child == NULL:
        return NULL
    child.claims = <Claim *> calloc(max(figures.mapping_count, 1), sizeof(Claim))
    if child.claims == NULL or (pipe2(ends, O_CLOEXEC) and not _take_spare(ends)):
        free(child.claims)
        free(child)
        return NULL
    child.fd, child.number = ends[0], fork_count
    child_end = ends[1]
    child.following, children = children, child
    add_relaxed(&child_count, 1)
    return child


cdef bint _take_spare(int *ends) noexcept nogil:
    if spare_ends[0] < 0:
        return False
    ends[0], ends[1] = spare_ends[0], spare_ends[1]
    spare_ends[0] = spare_ends[1] = -1
    return True


cdef void _forked_in_parent() noexcept nogil:
    if child_end >= 0:
        close(child_end)
    if own_id and spare_ends[0] < 0 and pipe2(spare_ends, O_CLOEXEC):
        spare_ends[0] = spare_ends[1] = -1
    unlock()


cdef void _forked_in_child() noexcept nogil:
    """Begin without files: what is mapped stays mapped, and belongs to the parent.

    `child_end` stays open until this process ends, and so do the descriptors of memory files, which
    hold the locks of what is mapped.
    """
    global own_id, file_fd, table_fd, pagemap_fd, table, used_numbers, unused, retired, next_offset
    global clients, origins, children, child_count, range_count, epoch, is_on, last_retired
    global first_lost_fork, last_lost_fork
    cdef Mapping *mapping = mappings
    pthread_mutex_init(&mutex, NULL)
    range_count = 0
    while mapping != NULL:
        mapping.origin = NULL
        _add_range(mapping.base, mapping.nbytes, 0, mapping)
        mapping = mapping.following
    if own_id:
        close(table_fd)
        close(pagemap_fd)
        munmap(table, TABLE_BYTES)
        if spare_ends[0] >= 0:
            close(spare_ends[0])
            close(spare_ends[1])
            spare_ends[0] = spare_ends[1] = -1
    table = NULL
    last_retired = first_lost_fork = last_lost_fork = 0
    own_id, file_fd, table_fd, pagemap_fd = 0, -1, -1, -1
    used_numbers, unused, retired, next_offset = 1, 0, 0, 0
    clients, origins, children, child_count = NULL, NULL, NULL, 0
    epoch += 1
    is_on = False
    figures.slab_count = figures.slab_bytes = 0
    figures.retired_count = figures.retired_bytes = 0
    figures.client_count = figures.origin_count = 0


if pthread_atfork(_prepare_fork, _forked_in_parent, _forked_in_child):
    raise MemoryError("cannot register the handlers that keep memory files apart after a fork")


# ---------------------------------------------------------------- for the exchange of descriptors

def open_file_of_process():
    """Make the file of this process, if it has none.

    Returns
    -------
    int
        By which peers know the process: random, and not 0.

    Raises
    ------
    UnavailableError
        The kernel or the limits of this process do not allow it; the message says why.
    """
    global own_id, file_fd, table_fd, pagemap_fd, table, slabs, map_limit, aligns_mappings
    cdef void *mapped
    if own_id:
        return own_id
    sealed.check_overcommit()
    try:
        new_file, new_table = sealed.make({"dask-fabric": FILE_BYTES, "table": TABLE_BYTES})
    except OSError as error:
        raise UnavailableError(f"memory files cannot be made here: {error}") from error
    mapped = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, new_table, 0)
    if slabs == NULL:
        slabs = <OwnSlab *> calloc(SLAB_LIMIT, sizeof(OwnSlab))
    if mapped == MAP_FAILED or slabs == NULL:
        os.close(new_file)
        os.close(new_table)
        raise UnavailableError("memory files cannot be made here: no memory for their table")
    memset(slabs, 0, SLAB_LIMIT * sizeof(OwnSlab))
    pagemap_fd = open_file("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
    # Else an array that was read would look as if it was changed, and would not be passed on.
    aligns_mappings = tells_huge_pages(pagemap_fd)
    table = <Record *> mapped
    file_fd, table_fd = new_file, new_table
    map_limit = sealed.map_count(USUAL_MAP_COUNT) // MAP_COUNT_PART
    lock_bytes(file_fd, 0, SLAB_LIMIT, F_RDLCK)     # forked children keep the descriptor
    if pipe2(spare_ends, O_CLOEXEC):
        spare_ends[0] = spare_ends[1] = -1
    own_id = 1 + secrets.randbits(62)
    return own_id


def descriptors():
    """Give new read-only descriptors of the file of this process and of the table of its slabs."""
    return sealed.reopen((file_fd, table_fd), os.O_RDONLY)


def add_client(uint64_t key, uint64_t id, int claims_fd):
    """Let a peer map slabs of this process.

    Parameters
    ----------
    key : int
        Of its connection, for `remove_client`.
    id : int
        Its own.
    claims_fd : int
        Of its claims; the caller closes it.

    Raises
    ------
    ValueError, OSError
        The descriptor is not what it must be.
    """
    global clients
    cdef Client *client
    cdef void *mapped
    sealed.check(claims_fd, CLAIMS_BYTES)
    mapped = mmap(NULL, CLAIMS_BYTES, PROT_READ, MAP_SHARED, claims_fd, 0)
    if mapped == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    client = <Client *> calloc(1, sizeof(Client))
    if client == NULL:
        munmap(mapped, CLAIMS_BYTES)
        raise MemoryError()
    client.id, client.key, client.claims = id, key, <const int32_t *> mapped
    with nogil:
        lock()
        client.following = clients
        clients = client
        figures.client_count += 1
        unlock()


def remove_client(uint64_t key):
    """A peer has ended: its claims are void."""
    cdef Client **link = &clients
    cdef Client *client
    with nogil:
        lock()
        while link[0] != NULL and link[0].key != key:
            link = &link[0].following
        client = link[0]
        if client != NULL:
            link[0] = client.following
            figures.client_count -= 1
        unlock()
        if client != NULL:
            munmap(<void *> client.claims, CLAIMS_BYTES)
            free(client)


def new_claims():
    """Make a table of claims, for the slabs of one process.

    Returns
    -------
    (int, int)
        A descriptor for `add_origin`, and a read-only one for that process.
    """
    (fd,) = sealed.make({"claims": CLAIMS_BYTES})
    try:
        return fd, *sealed.reopen((fd,), os.O_RDONLY)
    except BaseException:
        os.close(fd)
        raise


def add_origin(uint64_t id, int its_file_fd, int its_table_fd, int claims_fd):
    """Map slabs of a peer from now on.

    Parameters
    ----------
    id : int
        Of the peer.
    its_file_fd, its_table_fd, claims_fd : int
        The caller closes them.

    Raises
    ------
    ValueError, OSError
        A descriptor is not what it must be.
    """
    global origins
    cdef Origin *origin
    cdef void *its_table
    cdef void *claims
    sealed.check(its_file_fd, FILE_BYTES)
    sealed.check(its_table_fd, TABLE_BYTES)
    kept, kept_table = sealed.reopen((its_file_fd, its_table_fd), os.O_RDONLY)
    its_table = mmap(NULL, TABLE_BYTES, PROT_READ, MAP_SHARED, its_table_fd, 0)
    claims = mmap(NULL, CLAIMS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, claims_fd, 0)
    origin = <Origin *> calloc(1, sizeof(Origin))
    if its_table == MAP_FAILED or claims == MAP_FAILED or origin == NULL:
        if its_table != MAP_FAILED:
            munmap(its_table, TABLE_BYTES)
        if claims != MAP_FAILED:
            munmap(claims, CLAIMS_BYTES)
        free(origin)
        os.close(kept)
        os.close(kept_table)
        raise MemoryError()
    origin.id, origin.file_fd, origin.table_fd = id, kept, kept_table
    origin.table, origin.claims = <const Record *> its_table, <int32_t *> claims
    with nogil:
        lock()
        origin.following = origins
        origins = origin
        figures.origin_count += 1
        unlock()


def remove_origin(uint64_t id):
    """A peer has ended; what is mapped of it stays as it is. Then call `free_rest`."""
    cdef Origin *origin
    with nogil:
        lock()
        origin = _origin_of(id)
        if origin != NULL:
            origin.is_gone = True
            _drop_if_unused(origin)
        unlock()


def free_rest(uint64_t id):
    """Free what nobody has mapped of the file of a peer that has ended.

    Returns
    -------
    bool
        False where that is to be tried again later: the peer is not quite gone, or it has forked
        children.
    """
    cdef Origin *origin = NULL
    cdef int its_file_fd = -1, its_table_fd = -1, new_file = -1, new_table = -1
    cdef bint is_done
    with nogil:
        lock()
        origin = origins
        while origin != NULL and (origin.id != id or not origin.is_gone):
            origin = origin.following
        if origin != NULL:
            origin.mapping_count += 1   # until this is over
            its_file_fd, its_table_fd = origin.file_fd, origin.table_fd
        unlock()
    if origin == NULL:
        return True                     # nothing of it is mapped: the kernel has freed its file
    try:
        new_file, new_table = sealed.reopen((its_file_fd, its_table_fd), os.O_RDWR)
    except OSError:
        pass                            # no descriptor is left
    with nogil:
        is_done = _free_rest(origin, new_file, new_table)
    return is_done


cdef bint _free_rest(Origin *origin, int new_file, int new_table) noexcept nogil:
    """As `free_rest`, by descriptors that can be written to, or -1."""
    cdef void *mapped = MAP_FAILED
    cdef uint32_t number
    # Byte 0 stands for no slab: only the owner and its children have locked it.
    if new_table >= 0 and lock_bytes(new_file, 0, 1, F_WRLCK):
        mapped = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, new_table, 0)
        lock_bytes(new_file, 0, 1, F_UNLCK)
    if new_table >= 0:
        close(new_table)
    if mapped == MAP_FAILED and new_file >= 0:
        close(new_file)
    lock()
    if mapped != MAP_FAILED:
        origin.writable_fd, origin.writable_table = new_file, <Record *> mapped
        for number in range(1, SLAB_LIMIT):
            if origin.table[number].nbytes and claims_at(&origin.claims[number]) == 0:
                _free_of_dead(origin, number)
                unlock()                # it may take milliseconds
                lock()
    origin.mapping_count -= 1
    _drop_if_unused(origin)
    unlock()
    return mapped != MAP_FAILED


def holds(uintptr_t address):
    """Whether memory at this address lies in the file of this process."""
    cdef Range *found
    cdef bint is_own
    with nogil:
        lock()
        found = _range_of(address, 1)
        is_own = found != NULL and found.slab != 0
        unlock()
    return is_own


def has_origin(uint64_t id):
    """Whether slabs of a peer can be mapped."""
    cdef bint has
    with nogil:
        lock()
        has = _origin_of(id) != NULL
        unlock()
    return has


def has_client(uint64_t id):
    """Whether a peer can map slabs of this process."""
    cdef bint has
    with nogil:
        lock()
        has = _has_client(id)
        unlock()
    return has


# ---------------------------------------------------------------- settings and figures

def configure(*, is_enabled, threshold_bytes, most_bytes):
    """Have received arrays lie in the file from now on, or not.

    Parameters
    ----------
    is_enabled : bool
        The file must have been made.
    threshold_bytes : int
        From which size on.
    most_bytes : int
        All slabs together; what is more lies elsewhere.
    """
    global is_on, least_bytes
    if threshold_bytes < PAGE_BYTES:
        raise ConfigError(f"threshold_bytes is {threshold_bytes}: use {PAGE_BYTES} or more")
    lock()
    is_on = is_enabled and own_id != 0
    least_bytes = threshold_bytes
    add_relaxed(&max_bytes, most_bytes - max_bytes)
    figures.most_bytes = max_bytes if is_on else 0
    unlock()


def pause(pauses):
    """Have new memory lie elsewhere until this is called with False: memory that may be pinned."""
    global is_paused
    is_paused = pauses


def statistics():
    """Figures of the file and of what is mapped, as a dict of counts and bytes."""
    cdef Figures seen
    with nogil:
        lock()
        seen = figures
        unlock()
    return seen


def try_place(
    uint64_t origin, uint32_t slab, uint32_t generation, uint64_t offset, uint64_t nbytes
):
    """Map a place and unmap it again, for tests; give the outcome, 0 for success."""
    cdef Place place = Place(origin, slab, generation, offset)
    cdef Mapping *mapping = NULL
    cdef char *data = NULL
    cdef Mapped outcome = map_place(&place, nbytes, &mapping, &data)
    if outcome == MAPPED:
        unmap(mapping)
    return outcome

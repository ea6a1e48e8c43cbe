"""Memory of this process that is registered with libfabric.

Theory of operation
-------------------
A network card reads and writes memory that was registered: its pages are pinned, and the card knows
where they are. That takes up to 100 microseconds for each MB. So memory of the pool is registered
by whole slabs, at the first frame in it, and stays registered while the pool has the slab. Before a
slab goes back to the system, or other pages take its place, the pool calls `forget`. All other
memory, such as the arrays of users, is registered while a frame in it is on offer.

All registrations are in one array, ordered by their first byte, so that a frame finds one that
contains it. A lock guards them; nothing is called under it but libfabric.
"""

import os

from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove

from dask_fabric.linux cimport (
    pthread_atfork, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.memory.system cimport PAGE_BYTES, on_leaving
from dask_fabric.paths.ofi.libfabric cimport (
    CONTROL_ENABLE, MR_ENDPOINT, MR_LOCAL, MR_PROV_KEY, MR_VIRT_ADDR, READ, REMOTE_READ, Domain,
    Endpoint, Region,
)

cdef enum:
    LOOK_BACK = 8               # neighbours that may contain a frame, besides the nearest

cdef pthread_mutex_t mutex
cdef Domain *domain = NULL
cdef Endpoint *endpoint = NULL
cdef int mode = 0
cdef uint64_t last_key = int.from_bytes(os.urandom(3), "little") << 7
cdef Registration **registrations = NULL    # ordered by `begin`
cdef size_t count = 0
cdef size_t capacity = 0
cdef size_t made_count = 0

pthread_mutex_init(&mutex, NULL)


cdef void set_domain(Domain *its_domain, Endpoint *its_endpoint, int mr_mode) noexcept nogil:
    """Register memory with this domain from now on; nothing if it is NULL.

    Parameters
    ----------
    its_domain, its_endpoint
    mr_mode
        What the provider needs.
    """
    global domain, endpoint, mode, on_leaving
    domain, endpoint, mode = its_domain, its_endpoint, mr_mode
    on_leaving = forget
    if its_domain == NULL:
        on_leaving = NULL


cdef void _forked_in_child() noexcept nogil:
    """What is registered is the parent's, whose threads may hold the lock."""
    global count
    pthread_mutex_init(&mutex, NULL)
    count = 0
    if domain != NULL:
        set_domain(NULL, NULL, 0)


# By C: code of Python that runs at a fork may free arrays.
if pthread_atfork(NULL, NULL, _forked_in_child):
    raise MemoryError("cannot register a handler of forks")


cdef bint needs_destinations() noexcept nogil:
    """Whether memory must be registered to be read into."""
    return mode & MR_LOCAL != 0


cdef uint64_t remote_address(const Registration *registration, const char *data) noexcept nogil:
    """By what a peer addresses `data`."""
    if mode & MR_VIRT_ADDR:
        return <uintptr_t> data
    return <uintptr_t> data - registration.begin


cdef size_t _first_behind(uintptr_t address) noexcept nogil:
    """The index of the first registration that begins behind an address."""
    cdef size_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) // 2
        if registrations[middle].begin <= address:
            low = middle + 1
        else:
            high = middle
    return low


cdef Registration *register(const char *data, uint64_t nbytes, Slab slab) noexcept nogil:
    """Register memory, or use a registration that contains it; NULL if that fails.

    Parameters
    ----------
    data, nbytes
    slab
        The slab of the pool that it lies in; without memory if it is not the pool's.
    """
    cdef uintptr_t begin = <uintptr_t> data, end = begin + nbytes
    cdef Registration *found = NULL
    cdef size_t index, tries = 0
    pthread_mutex_lock(&mutex)
    index = _first_behind(begin)
    while index > 0 and tries < LOOK_BACK and found == NULL:
        index -= 1
        tries += 1
        if registrations[index].end >= end and not registrations[index].is_stale:
            found = registrations[index]
    if found == NULL and domain != NULL:
        if slab.data != NULL:
            begin = <uintptr_t> slab.data
            end = max(end, begin + slab.nbytes)
        found = _new(
            begin // PAGE_BYTES * PAGE_BYTES, (end + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES,
            slab.data != NULL
        )
    if found != NULL:
        found.user_count += 1
    pthread_mutex_unlock(&mutex)
    return found


cdef Registration *_new(uintptr_t begin, uintptr_t end, bint is_of_pool) noexcept nogil:
    global registrations, capacity, count, made_count, last_key
    cdef Registration *new
    cdef Registration **grown
    cdef size_t index
    if count == capacity:
        grown = <Registration **> realloc(
            registrations, (2 * capacity + 64) * sizeof(Registration *)
        )
        if grown == NULL:
            return NULL
        registrations, capacity = grown, 2 * capacity + 64
    new = <Registration *> calloc(1, sizeof(Registration))
    if new == NULL:
        return NULL
    last_key += 1
    new.begin, new.end, new.is_of_pool = begin, end, is_of_pool
    if not _register_with_provider(new, last_key):
        free(new)
        return NULL
    index = _first_behind(begin)
    memmove(
        &registrations[index + 1], &registrations[index],
        (count - index) * sizeof(Registration *)
    )
    registrations[index] = new
    count += 1
    made_count += 1
    return new


cdef bint _register_with_provider(Registration *new, uint64_t key) noexcept nogil:
    cdef int status = domain.mr.reg(
        &domain.fid, <void *> new.begin, new.end - new.begin, READ | REMOTE_READ, 0,
        0 if mode & MR_PROV_KEY else key, 0, &new.region, NULL
    )
    if status == 0 and mode & MR_ENDPOINT:
        status = new.region.fid.ops.bind(&new.region.fid, &endpoint.fid, 0)
        if status == 0:
            status = new.region.fid.ops.control(&new.region.fid, CONTROL_ENABLE, NULL)
        if status:
            new.region.fid.ops.close(&new.region.fid)
    if status:
        return False
    new.key = new.region.key
    new.desc = new.region.mem_desc
    return True


cdef void release(Registration *registration) noexcept nogil:
    """A user of a registration has ended."""
    pthread_mutex_lock(&mutex)
    _release(registration)
    pthread_mutex_unlock(&mutex)


cdef void release_key(const char *data, uint64_t key) noexcept nogil:
    """As `release`, for the registration with this key that contains `data`."""
    cdef size_t index
    pthread_mutex_lock(&mutex)
    index = _first_behind(<uintptr_t> data)
    while index > 0:
        index -= 1
        if registrations[index].key == key:
            _release(registrations[index])
            break
    pthread_mutex_unlock(&mutex)


cdef void _release(Registration *registration) noexcept nogil:
    registration.user_count -= 1
    if registration.user_count == 0 and (
        registration.is_stale or not registration.is_of_pool
    ):
        _close(registration)


cdef void _close(Registration *registration) noexcept nogil:
    global count
    cdef size_t index = _first_behind(registration.begin)
    while index > 0 and registrations[index - 1] != registration:
        index -= 1
    if index == 0:
        return                          # the parent's, in a forked child
    memmove(
        &registrations[index - 1], &registrations[index],
        (count - index) * sizeof(Registration *)
    )
    count -= 1
    registration.region.fid.ops.close(&registration.region.fid)
    free(registration)


cdef void forget(const char *data, Py_ssize_t nbytes) noexcept nogil:
    """The pool gives memory away, or other pages will take its place: do not use what is registered
    there any more."""
    cdef uintptr_t begin = <uintptr_t> data, end = begin + nbytes
    cdef Registration *registration
    cdef size_t index
    pthread_mutex_lock(&mutex)
    index = _first_behind(end - 1)
    # Slabs do not overlap: before the first that ends in front of it, only users' arrays remain.
    while index > 0:
        index -= 1
        registration = registrations[index]
        if registration.is_of_pool and registration.end <= begin:
            break
        if registration.is_of_pool and registration.end > begin:
            registration.is_stale = True
            if registration.user_count == 0:
                _close(registration)
    pthread_mutex_unlock(&mutex)


cdef Figures figures() noexcept nogil:
    cdef Figures seen
    cdef size_t index
    pthread_mutex_lock(&mutex)
    seen.count, seen.nbytes, seen.made_count = count, 0, made_count
    for index in range(count):
        seen.nbytes += registrations[index].end - registrations[index].begin
    pthread_mutex_unlock(&mutex)
    return seen

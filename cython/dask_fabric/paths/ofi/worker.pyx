"""libfabric in this process: one endpoint, its peers, and the thread that makes it progress.

Theory of operation
-------------------
A frame stays in its sender's memory, registered (`regions`). The receiver reads it (``fi_read``) in
chunks, several at a time: a network card does that without the sender's CPU, and other providers
have the sender's thread serve it. All that one transfer fetches is a `ReadJob`; the jobs of a
process take turns. A job ends when none of its chunks is in flight, and it has no work left or an
error. Its completion goes to the mailbox of its event loop (`jobs.completions`).

One native thread, which never takes the GIL, posts all reads and collects all completions. It
sleeps until the completion queue's descriptor or `wake_fd` is readable. Where a provider has no
such descriptor, the thread polls the queue while this process reads, or has frames on offer.

Before the first frame is read from a peer, its *nonce* is: 16 random bytes whose place and value
are in its hello. That proves that name, key and network are right, and connects the two. Until the
connection stands, libfabric answers EAGAIN: the read is tried again. After the last frame of a
transfer a nonce of the comm is read, which the sender overwrites at the end of the comm (`nonces`).

Libfabric cannot cancel a read. So a cancelled job posts no more chunks, and waits for those in
flight for some milliseconds. Then it is *abandoned*: its memory goes to quarantine until libfabric
ends them, maybe never. A peer that is stopped answers nothing, and no error is reported; whoever
waits must have a limit.

At the end of the process the thread is stopped and the endpoint closed, so that providers remove
their files. A forked child has neither: its parent's memory and thread are not touched any more.
"""

import atexit
import contextlib
import os
import threading

from libc.errno cimport EBADMSG, EIO, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from posix.time cimport timespec

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.mailbox cimport Completion, CompletionNode, Mailbox, post
from dask_fabric.jobs.native cimport prepare_thread, wait_limit
from dask_fabric.linux cimport (
    ECANCELED, EFD_CLOEXEC, EFD_NONBLOCK, POLLIN, eventfd, eventfd_read, eventfd_write, poll,
    pollfd, pthread_atfork, pthread_cond_broadcast, pthread_cond_init, pthread_cond_timedwait,
    pthread_create, pthread_join, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
    sched_yield,
)
from dask_fabric.paths.ofi.libfabric cimport (
    ADDRESS_UNKNOWN, AV_TABLE, CONTROL_ENABLE, CONTROL_GET_WAIT, CQ_FORMAT_TAGGED, EAGAIN, EAVAIL,
    RECV, TRANSMIT, WAIT_FD, WAIT_NONE, AddressesAttributes, Entry, ErrorEntry, Fid, Info,
    QueueAttributes, ask, check, domain_of, fi,
)
from dask_fabric.paths.ofi.nonces cimport (
    NONCE_BYTES, Cell, Nonce, Place, Seal, drop_cells, give_back, take_cell,
)
from dask_fabric.paths.ofi.regions cimport (
    Figures, Registration, Slab, figures, needs_destinations, register, release, set_domain,
)
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.frames cimport Slot
from dask_fabric.wire.path cimport REVOKED

from dask_fabric.errors import ForkedError, UnavailableError
from dask_fabric.paths.ofi import domains, libfabric

cdef enum:
    CHUNK_BYTES = 4 << 20
    CHUNKS_OF_JOB = 4           # in flight at once
    CHUNKS_LIMIT = 64           # of all jobs
    ENTRY_COUNT = 16            # completions collected at once
    PEER_COUNT = 1024           # expected; the tables of libfabric grow
    NAME_BYTES_LIMIT = 256
    RETRY_MS = 1                # until a read is tried again for which there was no room
    SAFETY_MS = 20              # longest sleep while anything goes on: an event may be missed
    SPIN_NS = 2_000_000         # polling without a pause after the last progress
    IDLE_PEER_NS = 60_000_000_000

_starting = threading.Lock()    # libfabric takes its settings from the process's environment
_is_ending = False
_running = None                 # what `start` was called with
_facts = {}
_domain = ""                    # the name of that in use
_nonce = None                   # of the process
_END_SECONDS = 10.0             # longest wait at exit for a start in progress

cdef Worker worker
memset(&worker, 0, sizeof(worker))
worker.cq_fd = worker.wake_fd = -1
pthread_mutex_init(&worker.mutex, NULL)
pthread_cond_init(&worker.changed, NULL)


# ---------------------------------------------------------------- starting and stopping

def start(library, provider, variables, node="", domain=None):
    """Start libfabric in this process; no effect if it runs already, with the same provider.

    Parameters
    ----------
    library : str
        The file to load.
    provider : str
        Its full name.
    variables : dict of str to str
        For the environment, while it starts: libfabric reads them once.
    node : str
        The local address to use; "" leaves it to the provider.
    domain : str, optional
        The network card to use; by default one that is near, see `domains.pick`.

    Returns
    -------
    dict
        What a peer must know; see `facts`.

    Raises
    ------
    ForkedError
        This is a forked child, where it cannot be used.
    UnavailableError
        Another library or provider runs already, or the process is exiting.
    OSError
        The library cannot be loaded, or does not start.
    """
    global _running
    with _starting:
        _refuse_forked()
        if _is_ending:
            raise UnavailableError("the process is exiting")
        if _running is None:
            with _set_for_now(variables):
                libfabric.open_library(library)
                _open(provider, node, domain)
            _running = library, provider
        elif _running != (library, provider):
            raise UnavailableError(
                f"{_running[1]} of {_running[0]} runs already, not {provider} of {library}"
            )
    return facts()


def facts():
    """Say what a peer must know of this process.

    Returns
    -------
    dict
        ``protocol``, ``protocol_version`` and ``addr_format`` (int) as libfabric numbers them;
        ``name`` (bytes): the address of the endpoint; ``nonce`` (bytes), and its ``address`` and
        ``key`` (int). The same again with ``connection_`` before the name, for a connection that
        has no nonce of its own.
    """
    return dict(_facts)


def domain():
    """Give the network card or interface in use, as libfabric calls it; "" if it does not run."""
    return _domain if is_running() else ""


def is_running():
    """Whether it runs, and belongs to this process (not to the parent of a fork)."""
    return worker.is_running and not worker.is_foreign


def statistics():
    """Count what goes on.

    Returns
    -------
    dict
        ``peer_count`` (processes that frames were read from), ``offered_count`` (frames that others
        may be reading), ``in_flight_count`` (reads), ``abandoned_count`` (transfers that were given
        up, but not by libfabric), ``read_bytes``, ``region_count`` and ``region_bytes``
        (registered memory), ``registration_count`` (so far).
    """
    cdef Worker seen
    cdef Figures registered
    cdef Peer *peer
    cdef ReadJob *job
    cdef int peer_count = 0, abandoned_count = 0
    with nogil:
        pthread_mutex_lock(&worker.mutex)
        seen = worker
        peer = worker.peers
        while peer != NULL:
            peer_count += 1
            peer = peer.next
        job = worker.abandoned
        while job != NULL:
            abandoned_count += 1
            job = job.next
        pthread_mutex_unlock(&worker.mutex)
        registered = figures()
    return {
        "peer_count": peer_count,
        "offered_count": seen.offered_count,
        "in_flight_count": seen.in_flight_count,
        "abandoned_count": abandoned_count,
        "read_bytes": seen.read_bytes,
        "region_count": registered.count,
        "region_bytes": registered.nbytes,
        "registration_count": registered.made_count,
    }


@contextlib.contextmanager
def _set_for_now(variables):
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


def _open(provider, node, wanted):
    global _domain
    cdef Info *info = ask(provider, node)
    cdef Info *one = info
    found = []
    before = _own_fds()
    try:
        while one != NULL:
            found.append(domains.Domain(*domain_of(one)))
            one = one.next
        own = [domain for domain in found if domain.provider == provider]
        if not own:
            others = ", ".join(dict.fromkeys(domain.provider for domain in found))
            raise UnavailableError(f"libfabric was asked for {provider}, and offers {others}")
        chosen = domains.pick(own, wanted)
        one = info
        for _ in range(found.index(chosen)):
            one = one.next
        with libfabric.kept_signals():
            _open_objects(one)
        _publish(one)
        _domain = chosen.name
    except BaseException:
        _close_objects()
        raise
    finally:
        fi.freeinfo(info)
        for fd in _own_fds() - before:      # else a child keeps connections of a dead parent open
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, False)


def _own_fds():
    return {int(name) for name in os.listdir("/proc/self/fd")}


cdef int _open_objects(Info *info) except -1:
    cdef AddressesAttributes addresses
    cdef int status
    with nogil:
        status = fi.open_fabric(info.fabric_attr, &worker.fabric, NULL)
    check(status, "fi_fabric")
    with nogil:
        status = worker.fabric.ops.domain(worker.fabric, info, &worker.domain, NULL)
    check(status, "fi_domain")
    memset(&addresses, 0, sizeof(addresses))
    addresses.type, addresses.count = AV_TABLE, PEER_COUNT
    status = worker.domain.ops.av_open(worker.domain, &addresses, &worker.av, NULL)
    if status:                              # shm refuses more than 256
        addresses.count = 0
        status = worker.domain.ops.av_open(worker.domain, &addresses, &worker.av, NULL)
    check(status, "fi_av_open")
    _open_queue(WAIT_FD)
    if worker.cq == NULL:
        _open_queue(WAIT_NONE)
    with nogil:
        status = worker.domain.ops.endpoint(worker.domain, info, &worker.endpoint, NULL)
    check(status, "fi_endpoint")
    check(_bind(&worker.av.fid, 0), "fi_ep_bind")
    check(_bind(&worker.cq.fid, TRANSMIT | RECV), "fi_ep_bind")
    with nogil:
        status = worker.endpoint.fid.ops.control(&worker.endpoint.fid, CONTROL_ENABLE, NULL)
    check(status, "fi_enable")
    return 0


cdef int _open_queue(int wait_object) except -1:
    """Open the completion queue; it stays NULL if the provider has no descriptor to wait for."""
    cdef QueueAttributes attributes
    cdef int status
    memset(&attributes, 0, sizeof(attributes))
    attributes.size = 2 * CHUNKS_LIMIT
    attributes.format, attributes.wait_obj = CQ_FORMAT_TAGGED, wait_object
    status = worker.domain.ops.cq_open(worker.domain, &attributes, &worker.cq, NULL)
    if wait_object == WAIT_NONE:
        return check(status, "fi_cq_open")
    if status == 0:
        status = worker.cq.fid.ops.control(&worker.cq.fid, CONTROL_GET_WAIT, &worker.cq_fd)
        if status:
            worker.cq.fid.ops.close(&worker.cq.fid)
    if status:
        worker.cq, worker.cq_fd = NULL, -1
    return 0


cdef int _bind(Fid *other, uint64_t flags) noexcept nogil:
    return worker.endpoint.fid.ops.bind(&worker.endpoint.fid, other, flags)


cdef int _publish(Info *info) except -1:
    """Register the nonce, keep what peers must know, and start the thread."""
    global _nonce
    cdef char name[NAME_BYTES_LIMIT]
    cdef size_t name_bytes = NAME_BYTES_LIMIT
    check(worker.endpoint.cm.getname(&worker.endpoint.fid, name, &name_bytes), "fi_getname")
    set_domain(worker.domain, worker.endpoint, info.domain_attr.mr_mode)
    _nonce = Nonce()
    address, key = _nonce.place
    _facts.update(
        protocol=info.ep_attr.protocol, protocol_version=info.ep_attr.protocol_version,
        addr_format=info.addr_format, name=name[:name_bytes],
        nonce=_nonce.value, address=address, key=key,
        connection_nonce=_nonce.value, connection_address=address, connection_key=key,
    )
    worker.chunk_bytes = min(<size_t> CHUNK_BYTES, info.ep_attr.max_msg_size)
    worker.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if worker.wake_fd < 0:
        raise OSError("no descriptor for libfabric's thread: is ulimit -n reached?")
    worker.is_running = True
    if pthread_create(&worker.thread, NULL, _thread_main, NULL):
        worker.is_running = False
        raise OSError("no thread for libfabric: is ulimit -u reached?")
    return 0


cdef void _close_objects() noexcept:
    """After a start that failed; the library may start again later."""
    cdef Fid **fids = [
        <Fid *> worker.endpoint, <Fid *> worker.cq, <Fid *> worker.av, <Fid *> worker.domain,
        <Fid *> worker.fabric,
    ]
    cdef int index
    global _nonce
    _nonce = None
    drop_cells()
    set_domain(NULL, NULL, 0)
    for index in range(5):
        if fids[index] != NULL:
            fids[index].ops.close(fids[index])
    worker.endpoint, worker.cq, worker.av = NULL, NULL, NULL
    worker.domain, worker.fabric, worker.cq_fd = NULL, NULL, -1


def _stop():
    """At exit: stop the thread, and let the provider remove its files."""
    global _is_ending
    _is_ending = True
    if _starting.acquire(timeout=_END_SECONDS):
        _starting.release()
    if not is_running():
        return
    with nogil:
        pthread_mutex_lock(&worker.mutex)
        worker.is_stopping = True
        pthread_mutex_unlock(&worker.mutex)
        eventfd_write(worker.wake_fd, 1)
        pthread_join(worker.thread, NULL)
        # The endpoint alone: to touch its queue afterwards crashes some providers.
        worker.endpoint.fid.ops.close(&worker.endpoint.fid)


def _refuse_forked():
    if worker.is_foreign:
        raise ForkedError(
            "libfabric belongs to the parent of this forked process and cannot be used here: start "
            "processes by spawn or forkserver instead of fork"
        )


def _after_fork_in_child():
    global _starting
    if _starting.locked():
        worker.is_foreign = True
    _starting = threading.Lock()


cdef void _forked_in_child() noexcept nogil:
    """The parent's thread may hold the lock: never touch libfabric again.

    By C: code of Python that runs at a fork may free paths.
    """
    worker.is_foreign = worker.is_foreign or worker.is_running
    pthread_mutex_init(&worker.mutex, NULL)


atexit.register(_stop)
os.register_at_fork(after_in_child=_after_fork_in_child)
if pthread_atfork(NULL, NULL, _forked_in_child):
    raise MemoryError("cannot register a handler of forks")


# ---------------------------------------------------------------- peers and jobs, from any thread

cdef void _wake() noexcept nogil:
    worker.active_ns = now_ns()
    eventfd_write(worker.wake_fd, 1)


cdef bint _may_use() noexcept nogil:
    return worker.is_running and not worker.is_foreign and not worker.is_stopping


cdef Peer *open_peer(const char *name, size_t name_bytes, const Seal *seal) noexcept nogil:
    """Give the peer with this name and nonce, which `close_peer` ends; NULL if there is none.

    Parameters
    ----------
    name, name_bytes
        Its address. Only from peers that are trusted to run code here: libfabric checks little.
    seal
        Its nonce, and where that is.
    """
    cdef Peer *peer
    if not _may_use():
        return NULL
    pthread_mutex_lock(&worker.mutex)
    peer = worker.peers
    while peer != NULL and (
        peer.name_bytes != name_bytes or memcmp(peer.name, name, name_bytes)
        or memcmp(peer.seal.nonce, seal.nonce, NONCE_BYTES)
    ):
        peer = peer.next
    if peer == NULL:
        peer = _new_peer(name, name_bytes, seal)
    elif peer.state == REFUSED:
        peer.state = UNKNOWN            # a new comm tries again
    if peer != NULL:
        peer.user_count += 1
    pthread_mutex_unlock(&worker.mutex)
    return peer


cdef Peer *_new_peer(const char *name, size_t name_bytes, const Seal *seal) noexcept nogil:
    cdef Peer *peer = <Peer *> calloc(1, sizeof(Peer))
    if peer == NULL:
        return NULL
    peer.name = <char *> malloc(name_bytes)
    peer.found = take_cell()
    if peer.name == NULL or peer.found == NULL:
        _free_peer(peer)
        return NULL
    memcpy(peer.name, name, name_bytes)
    peer.name_bytes, peer.seal = name_bytes, seal[0]
    peer.number = ADDRESS_UNKNOWN
    peer.next = worker.peers
    worker.peers = peer
    return peer


cdef void _free_peer(Peer *peer) noexcept nogil:
    if peer.found != NULL:
        give_back(peer.found)
    free(peer.name)
    free(peer)


cdef void close_peer(Peer *peer) noexcept nogil:
    pthread_mutex_lock(&worker.mutex)
    _leave_peer(peer)
    pthread_mutex_unlock(&worker.mutex)


cdef void prove_again(Peer *peer) noexcept nogil:
    """Read the nonce of a peer once more, since something has failed; see `is_proven`."""
    if not _may_use():
        return
    pthread_mutex_lock(&worker.mutex)
    if peer.state != TRYING:
        peer.state = UNKNOWN
        peer.must_prove = worker.must_prove = True
    _wake()
    pthread_mutex_unlock(&worker.mutex)


cdef bint is_proven(const Peer *peer) noexcept nogil:
    """Whether the last read of a peer's nonce has succeeded."""
    cdef bint proven
    pthread_mutex_lock(&worker.mutex)
    proven = peer.state == PROVEN
    pthread_mutex_unlock(&worker.mutex)
    return proven and _may_use()


cdef void _refuse(Peer *peer, int error) noexcept nogil:
    peer.state, peer.error, peer.refused_ns = REFUSED, error, now_ns()


cdef void _leave_peer(Peer *peer) noexcept nogil:
    peer.user_count -= 1
    peer.idle_since_ns = now_ns()


cdef void count_offers(int more) noexcept nogil:
    """Frames were put on offer, or are not any more."""
    if not _may_use():
        return
    pthread_mutex_lock(&worker.mutex)
    worker.offered_count += more
    if worker.cq_fd < 0 and more > 0:
        _wake()                         # the thread must poll from now on
    pthread_mutex_unlock(&worker.mutex)


cdef uint64_t submit(
    Mailbox *mailbox, uint64_t tag, Peer *peer, const Slot *slots, const Slab *slabs,
    size_t slot_count, const Seal *seal, int *error
) noexcept nogil:
    """Start to read frames from a peer; 0 and an errno if that fails.

    Parameters
    ----------
    mailbox, tag, peer
    slots, slabs, slot_count
        The frames, which have memory, and the slabs of the pool that they lie in.
    seal
        The nonce of the comm. The job's error is REVOKED if it has changed after all was read.
    error
    """
    cdef ReadJob *job = <ReadJob *> calloc(1, sizeof(ReadJob))
    cdef uint64_t name
    if job != NULL:
        job.peer, job.slot_count = peer, slot_count
        job.slots = <Slot *> malloc(slot_count * sizeof(Slot))
        job.destinations = <Registration **> calloc(slot_count, sizeof(Registration *))
        job.node = <CompletionNode *> malloc(sizeof(CompletionNode))
        job.seal, job.found = seal[0], take_cell()
    if (
        job == NULL or job.slots == NULL or job.destinations == NULL or job.node == NULL
        or job.found == NULL
    ):
        _free(job)
        error[0] = ENOMEM
        return 0
    memcpy(job.slots, slots, slot_count * sizeof(Slot))
    if not _register_destinations(job, slabs):
        _free(job)
        error[0] = ENOMEM
        return 0
    job.tag, job.mailbox = tag, mailbox
    if not _may_use():
        _free(job)
        error[0] = ECANCELED
        return 0
    pthread_mutex_lock(&worker.mutex)
    if peer.state == REFUSED and now_ns() - peer.refused_ns > REFUSED_NS:
        peer.state = UNKNOWN
    peer.user_count += 1
    worker.job_count += 1
    job.name = name = worker.job_count
    _append(job)
    _wake()
    pthread_mutex_unlock(&worker.mutex)
    return name


cdef bint _register_destinations(ReadJob *job, const Slab *slabs) noexcept nogil:
    cdef size_t index
    if not needs_destinations():
        return True
    for index in range(job.slot_count):
        job.destinations[index] = register(
            job.slots[index].data, job.slots[index].nbytes, slabs[index]
        )
        if job.destinations[index] == NULL:
            return False
    return True


cdef int64_t moved_bytes_of(uint64_t name) noexcept nogil:
    """The bytes that a job has moved; -1 if it has ended."""
    cdef ReadJob *job
    cdef int64_t moved_bytes = -1
    pthread_mutex_lock(&worker.mutex)
    job = _find(worker.first, name)
    if job != NULL:
        moved_bytes = job.moved_bytes
    pthread_mutex_unlock(&worker.mutex)
    return moved_bytes


cdef bint cancel(uint64_t name) noexcept nogil:
    """Cancel a job, unless it has ended; True if libfabric may still write to its memory."""
    cdef timespec until = wait_limit()
    cdef ReadJob *job
    cdef bint is_in_use = False
    if worker.is_foreign:
        return False
    pthread_mutex_lock(&worker.mutex)
    job = _find(worker.first, name)
    if job != NULL:
        job.is_cancelled = True
        while job.in_flight_count > 0 and pthread_cond_timedwait(
            &worker.changed, &worker.mutex, &until
        ) == 0:
            pass
        is_in_use = job.in_flight_count > 0
        _remove(&worker.first, job)
        if is_in_use:
            job.next = worker.abandoned
            worker.abandoned = job
        else:
            _end(job)
    pthread_mutex_unlock(&worker.mutex)
    return is_in_use


cdef bint is_reading(uint64_t name) noexcept nogil:
    """Whether libfabric may still write to the memory of a cancelled job."""
    cdef bint is_in_use
    if worker.is_foreign:
        return False
    pthread_mutex_lock(&worker.mutex)
    is_in_use = _find(worker.abandoned, name) != NULL
    pthread_mutex_unlock(&worker.mutex)
    return is_in_use


# ---------------------------------------------------------------- with the lock

cdef void _append(ReadJob *job) noexcept nogil:
    cdef ReadJob **link = &worker.first
    while link[0] != NULL:
        link = &link[0].next
    job.next = NULL
    link[0] = job


cdef void _remove(ReadJob **link, ReadJob *job) noexcept nogil:
    while link[0] != NULL and link[0] != job:
        link = &link[0].next
    if link[0] != NULL:
        link[0] = job.next


cdef ReadJob *_find(ReadJob *job, uint64_t name) noexcept nogil:
    while job != NULL and job.name != name:
        job = job.next
    return job


cdef void _end(ReadJob *job) noexcept nogil:
    """A job of no list has ended, and libfabric uses nothing of it."""
    _leave_peer(job.peer)
    _free(job)


cdef void _free(ReadJob *job) noexcept nogil:
    cdef size_t index
    if job == NULL:
        return
    if job.destinations != NULL:
        for index in range(job.slot_count):
            if job.destinations[index] != NULL:
                release(job.destinations[index])
    if job.found != NULL:
        give_back(job.found)
    free(job.destinations)
    free(job.slots)
    free(job.node)
    free(job)


cdef bint _is_busy() noexcept nogil:
    return worker.first != NULL or worker.in_flight_count > 0 or worker.offered_count > 0


# ---------------------------------------------------------------- the thread

cdef void *_thread_main(void *argument) noexcept nogil:
    cdef bint has_moved, must_retry
    cdef int wait_ms
    cdef int64_t active_ns
    prepare_thread(b"fabric-ofi")
    pthread_mutex_lock(&worker.mutex)
    while not worker.is_stopping:
        must_retry = _post_reads()
        pthread_mutex_unlock(&worker.mutex)
        has_moved = _collect()          # takes the lock for what it finds
        pthread_mutex_lock(&worker.mutex)
        if has_moved:
            worker.active_ns = now_ns()
            continue
        wait_ms = RETRY_MS if must_retry else SAFETY_MS if _is_busy() else -1
        active_ns = worker.active_ns
        pthread_mutex_unlock(&worker.mutex)
        _sleep(wait_ms, active_ns)
        pthread_mutex_lock(&worker.mutex)
    pthread_mutex_unlock(&worker.mutex)
    return NULL


cdef void _sleep(int wait_ms, int64_t active_ns) noexcept nogil:
    """Wait until there may be something to do.

    Parameters
    ----------
    wait_ms
        The longest wait; -1: nothing goes on.
    active_ns
        When something was last done.
    """
    cdef pollfd watched[2]
    cdef uint64_t ignored
    cdef Fid *fid = &worker.cq.fid
    watched[0] = pollfd(worker.wake_fd, POLLIN, 0)
    watched[1] = pollfd(worker.cq_fd, POLLIN, 0)
    if worker.cq_fd >= 0:
        if worker.fabric.ops.trywait(worker.fabric, &fid, 1):
            return                      # something is in the queue already
        poll(watched, 2, wait_ms)
    elif wait_ms >= 0 and now_ns() - active_ns < SPIN_NS:
        sched_yield()
        return
    else:
        poll(watched, 1, min(wait_ms, RETRY_MS))
    if watched[0].revents:
        eventfd_read(worker.wake_fd, &ignored)


cdef bint _post_reads() noexcept nogil:
    """Post chunks of all jobs in turn; True if libfabric has no room, and must be asked again."""
    cdef ReadJob *job = worker.first
    cdef ReadJob *following
    cdef bint must_retry = worker.must_prove and _prove_peers()
    while job != NULL:
        following = job.next
        if not job.is_cancelled and not job.error:
            if job.peer.state == UNKNOWN:
                _begin_peer(job.peer)
            if job.peer.state == REFUSED:
                job.error = job.peer.error
            elif job.peer.state == PROVEN:
                must_retry |= _post_chunks(job)
            elif job.peer.state == UNKNOWN:
                must_retry = True
        if job.in_flight_count == 0 and not job.is_cancelled and job.index == job.slot_count:
            if not job.error and not job.is_checking:
                must_retry |= _post_check(job)
        if job.in_flight_count == 0 and not job.is_cancelled and (job.error or job.is_checking):
            _complete(job)
        job = following
    return must_retry


cdef bint _prove_peers() noexcept nogil:
    """Begin with the peers that are to be proved again; True if libfabric has no room."""
    cdef Peer *peer = worker.peers
    worker.must_prove = False
    while peer != NULL:
        if peer.must_prove:             # a path uses it, so it stays in the list
            if peer.state == UNKNOWN:
                _begin_peer(peer)
            peer.must_prove = peer.state == UNKNOWN
            worker.must_prove |= peer.must_prove
        peer = peer.next
    return worker.must_prove


cdef void _begin_peer(Peer *peer) noexcept nogil:
    """Read its nonce; its state stays UNKNOWN if libfabric has no room yet."""
    cdef Chunk *chunk
    cdef ssize_t status
    if peer.number == ADDRESS_UNKNOWN:
        _forget_idle_peers()
        if worker.av.ops.insert(worker.av, peer.name, 1, &peer.number, 0, NULL) != 1:
            peer.number = ADDRESS_UNKNOWN
            _refuse(peer, EIO)
            return
    chunk = _take_chunk(peer, NULL, NONCE_BYTES)
    if chunk == NULL:
        return
    status = _read(chunk, peer.found.data, peer.found.registration, &peer.seal.place)
    if status == 0:
        peer.state = TRYING
        peer.user_count += 1
    elif status != -EAGAIN:
        _refuse(peer, <int> -status)


cdef bint _post_chunks(ReadJob *job) noexcept nogil:
    cdef Slot *slot
    cdef Place place
    cdef Chunk *chunk
    cdef ssize_t status
    cdef Registration *destination
    while (
        job.index < job.slot_count and job.in_flight_count < CHUNKS_OF_JOB
        and worker.in_flight_count < CHUNKS_LIMIT
    ):
        slot = &job.slots[job.index]
        memcpy(&place, slot.descriptor, sizeof(place))
        place.address += job.offset
        chunk = _take_chunk(
            job.peer, job, min(slot.nbytes - job.offset, <uint64_t> worker.chunk_bytes)
        )
        if chunk == NULL:
            return True
        destination = job.destinations[job.index]
        status = _read(chunk, slot.data + job.offset, destination, &place)
        if status == -EAGAIN:
            return True
        if status:
            job.error = <int> -status
            return False
        job.in_flight_count += 1
        job.offset += chunk.nbytes
        if job.offset == slot.nbytes:
            job.index, job.offset = job.index + 1, 0
    return False


cdef bint _post_check(ReadJob *job) noexcept nogil:
    """Read the comm's nonce; True if libfabric has no room, and must be asked again."""
    cdef Chunk *chunk = _take_chunk(job.peer, job, NONCE_BYTES)
    cdef ssize_t status
    if chunk == NULL:
        return True
    status = _read(chunk, job.found.data, job.found.registration, &job.seal.place)
    if status == -EAGAIN:
        return True
    if status:
        job.error = <int> -status
        return False
    job.in_flight_count, job.is_checking = 1, True
    return False


cdef ssize_t _read(
    Chunk *chunk, char *data, Registration *destination, const Place *place
) noexcept nogil:
    cdef void *desc = NULL if destination == NULL else destination.desc
    cdef ssize_t status = worker.endpoint.rma.read(
        worker.endpoint, data, chunk.nbytes, desc, chunk.peer.number, place.address, place.key,
        chunk
    )
    if status == 0:
        worker.in_flight_count += 1
    else:
        _put_back(chunk)
    return status


cdef Chunk *_take_chunk(Peer *peer, ReadJob *job, size_t nbytes) noexcept nogil:
    cdef Chunk *chunk = worker.unused
    if chunk != NULL:
        worker.unused = chunk.next
    else:
        chunk = <Chunk *> calloc(1, sizeof(Chunk))
    if chunk != NULL:
        chunk.peer, chunk.job, chunk.nbytes = peer, job, nbytes
    return chunk


cdef void _put_back(Chunk *chunk) noexcept nogil:
    chunk.next = worker.unused
    worker.unused = chunk


cdef bint _collect() noexcept nogil:
    """Collect completions; True if there were any."""
    cdef Entry entries[ENTRY_COUNT]
    cdef ErrorEntry failed
    cdef ssize_t count = worker.cq.ops.read(worker.cq, entries, ENTRY_COUNT)
    cdef ssize_t index
    if count == -EAVAIL:
        memset(&failed, 0, sizeof(failed))
        if worker.cq.ops.readerr(worker.cq, &failed, 0) != 1 or failed.context == NULL:
            return False
        pthread_mutex_lock(&worker.mutex)
        _chunk_ended(<Chunk *> failed.context, failed.error if failed.error else EIO)
        pthread_mutex_unlock(&worker.mutex)
        return True
    if count <= 0:
        return False
    pthread_mutex_lock(&worker.mutex)
    for index in range(count):
        if entries[index].context != NULL:
            _chunk_ended(<Chunk *> entries[index].context, 0)
    pthread_mutex_unlock(&worker.mutex)
    return True


cdef void _chunk_ended(Chunk *chunk, int error) noexcept nogil:
    cdef ReadJob *job = chunk.job
    cdef Peer *peer = chunk.peer
    worker.in_flight_count -= 1
    if job == NULL:
        if error == 0 and memcmp(peer.found.data, peer.seal.nonce, NONCE_BYTES):
            error = EBADMSG             # another process has this address
        if error:
            _refuse(peer, error)
        else:
            peer.state = PROVEN
        _leave_peer(peer)
    else:
        job.in_flight_count -= 1
        if error:
            job.error = error
        elif job.is_checking:
            if memcmp(job.found.data, job.seal.nonce, NONCE_BYTES):
                job.error = REVOKED
        else:
            job.moved_bytes += chunk.nbytes
            worker.read_bytes += chunk.nbytes
        if job.in_flight_count == 0 and job.is_cancelled:
            _cancelled_job_ended(job)
    _put_back(chunk)


cdef void _cancelled_job_ended(ReadJob *job) noexcept nogil:
    """Nothing of it is in flight: `cancel`, or the quarantine, may go on."""
    if _find(worker.abandoned, job.name) == NULL:
        pthread_cond_broadcast(&worker.changed)
        return                          # `cancel` frees it
    _remove(&worker.abandoned, job)
    _end(job)


cdef void _complete(ReadJob *job) noexcept nogil:
    job.node.completion = Completion(
        tag=job.tag, progress=FAILED if job.error else COMPLETE, error=job.error,
        moved_bytes=job.moved_bytes, busy_ns=0, posted_ns=0,
    )
    _remove(&worker.first, job)
    # Under the lock, so that `cancel` finds the job until its completion is posted.
    post(job.mailbox, job.node)
    job.node = NULL
    _end(job)


cdef void _forget_idle_peers() noexcept nogil:
    """Forget peers that nobody has used for a while: processes come and go."""
    cdef Peer **link = &worker.peers
    cdef Peer *peer
    cdef int64_t before_ns = now_ns() - IDLE_PEER_NS
    while link[0] != NULL:
        peer = link[0]
        if peer.user_count == 0 and peer.idle_since_ns < before_ns:
            if peer.number != ADDRESS_UNKNOWN:
                worker.av.ops.remove(worker.av, &peer.number, 1, 0)
            link[0] = peer.next
            _free_peer(peer)
        else:
            link = &link[0].next

"""The endpoint of the `lanes` path: frames in parts over several connections.

Theory of operation
-------------------
One flow of TCP may be slower than the network: clouds and shapers cap each flow, and a hash places
each on one link of several. So beside the stream there are *lanes*, further connections between the
same two processes. Each frame is cut in parts, one for each lane.

The sender pushes. A frame's descriptor has the *share* of each lane, so that both sides compute the
same parts. A lane is a queue in each direction: the parts of all frames, in the order of messages,
and of frames within them. The receiver receives each part into its place in the frame. A header
before each part names message and frame. It is compared with what is expected, so that a lane that
is out of step is noticed.

Shares follow the speed at which the lanes sent last: a slow one gets less.

A lane that fails is closed, and its shares are 0 from then on. The other lanes finish the message,
which keeps them in step. Then the receiver requests its frames over the stream. A receive that is
given up leaves lanes in the middle of a part, so they are all closed. Without lanes this path takes
nothing, and frames go on the stream.

Who opens lanes, and how many, is decided elsewhere (`paths/lanes/opener.py`): the client dials. The
server may send on a lane before the client knows that it is open. So a part may wait for its lane.
A lane's *epoch* tells connections apart that had the same number one after another.
"""

import logging
import os
import weakref

cimport cython
from libc.errno cimport ECONNABORTED, ECONNRESET, EIO, EPROTO, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport Job, reap
from dask_fabric.jobs.mailbox cimport Mailbox
from dask_fabric.linux cimport ECANCELED, iovec
from dask_fabric.paths.joined cimport JoinedSocket
from dask_fabric.paths.stream cimport COMPLETE, END_OF_STREAM, FAILED, RECEIVE, SEND
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease
from dask_fabric.wire.path cimport (
    ABANDON, FETCH_FAULT, FETCHED, NOT_FETCHED, STARTED, Fetch, Path, Transfer,
)
from dask_fabric.wire.records cimport DESCRIPTOR_BYTES_LIMIT, HOST_MEMORY

logger = logging.getLogger(__name__)

NAME = "lanes"
NUMBER = 5                      # on the wire
LANE_COUNT_LIMIT = LANE_LIMIT

cdef enum:
    SHARE_LIMIT = 1024          # the share of the fastest lane
    SHARE_LEAST = 64            # a slower one still shows whether it is faster now
    PAGE_BYTES = 4096           # parts begin at pages
    RATED_BYTES = 4 << 20       # a smaller part may vanish in the socket's buffer
    RATED_NS = 10_000_000_000   # then the speed is unknown again
    DESCRIBED_NS = 1_000_000    # frames this soon after another have the same shares

assert sizeof(Descriptor) == DESCRIPTOR_BYTES_LIMIT

TEND_SECONDS = 0.5              # interval of the checks for progress
STALLED_SECONDS = 2.0           # a lane that stands still while others move is closed,
LAST_SECONDS = 5.0              # and after this time if some have finished
STILL_SECONDS = 60.0            # a transfer without any progress is abandoned

_paths = weakref.WeakSet()
_counts = {"open": 0, "opened": 0, "lost": 0}


def _after_fork_in_child():
    for path in list(_paths):
        (<LanesPath> path)._forked()
    _paths.clear()
    _counts.update(open=0, opened=0, lost=0)


os.register_at_fork(after_in_child=_after_fork_in_child)


def statistics():
    """Count the lanes of this process.

    Returns
    -------
    dict
        ``open_count``, and since the start ``opened_count`` and ``lost_count`` (not those that
        ended with their comm).
    """
    return {f"{name}_count": count for name, count in _counts.items()}


# ---------------------------------------------------------------- parts

cdef uint64_t _cut(uint64_t nbytes, uint64_t part, uint64_t total) noexcept nogil:
    """Where the first `part` of `total` shares of a frame end; no product can overflow."""
    if part >= total:
        return nbytes
    return (nbytes // total * part + nbytes % total * part // total) & ~<uint64_t> (PAGE_BYTES - 1)


cdef uint64_t _bounds(
    const Descriptor *descriptor, int number, uint64_t nbytes, uint64_t *begin
) noexcept nogil:
    """The size of a lane's part of a frame, and where it begins."""
    cdef uint64_t before = 0, total = 0
    cdef int other
    for other in range(LANE_LIMIT):
        if other < number:
            before += descriptor.shares[other]
        total += descriptor.shares[other]
    if total == 0:
        return 0
    begin[0] = _cut(nbytes, before, total)
    return _cut(nbytes, before + descriptor.shares[number], total) - begin[0]


def bounds(shares, nbytes):
    """Give begin and size of each lane's part of a frame of *nbytes*, by the shares of all eight.

    Parameters
    ----------
    shares : sequence of int
    nbytes : int

    Returns
    -------
    list of (int, int)
    """
    cdef Descriptor descriptor
    cdef uint64_t begin = 0, size
    cdef int number
    cdef list found = []
    memset(&descriptor, 0, sizeof(descriptor))
    for number, share in enumerate(shares):
        descriptor.shares[number] = share
    for number in range(LANE_LIMIT):
        size = _bounds(&descriptor, number, nbytes, &begin)
        found.append((begin, size))
    return found


@cython.auto_pickle(False)
@cython.final
cdef class Part:
    """What one lane moves of one message: for each frame a header, and a part of it."""

    def __dealloc__(self):
        free(self.vectors)
        free(self.headers)

    cdef bint is_right(self) noexcept:
        """Whether the headers arrived that were expected."""
        return self.is_sending or memcmp(
            self.headers, self.arrived, self.header_count * sizeof(PartHeader)
        ) == 0


@cython.auto_pickle(False)
@cython.final
cdef class LanesJob(Job):
    """Moves the frames of one message, or of one window of it, by all lanes."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        cdef Part part
        self.left_count = len(self.parts) + 1
        self.moved_ns = now_ns()
        for part in list(self.parts):
            if part.lane is None or part.lane.is_dead or not part.is_valid:
                self.part_ended(part, ECONNRESET)
            else:
                part.lane.add(part)
        return 1

    cdef part_ended(self, Part part, int error):
        """Count a part that has ended; the last one ends the job."""
        if part.has_ended:
            return
        part.has_ended = True
        self.moved_ns = now_ns()
        if error:
            self.error = error
        self.left_count -= 1
        if self.left_count == 0:
            self._finish()

    cdef _finish(self):
        cdef int error = self.error
        self.parts = []
        if self.queue is None or not self.queue.forget(self):
            return                      # cancelled
        owner = self.owner()
        if owner is not None:
            # A lane that was lost is no reason to give the path up: the others may go on.
            if self.is_sending:
                error = 0
            owner._job_ended(self, FAILED if error else COMPLETE, error, self.nbytes)

    def started(self):
        """All parts were given to their lanes: the job may end now."""
        self.left_count -= 1
        if self.left_count == 0:
            self._finish()

    cdef bint _end(self) noexcept:
        """Its lanes are in the middle of a part: close them."""
        cdef Part part
        parts, self.parts = self.parts, []
        for part in parts:
            if not part.has_ended and part.lane is not None:
                part.lane.fail(ECANCELED)
        return False                    # memory in use is in quarantine with the lane's own job


# ---------------------------------------------------------------- one lane

@cython.auto_pickle(False)
@cython.final
cdef class Lane:
    """One connection beside the stream: a queue of parts in each direction."""

    cdef add(self, Part part):
        cdef list parts = self.sending if part.is_sending else self.receiving
        parts.append(part)
        part.moved_ns = now_ns()
        if len(parts) == 1:
            self._start(part)

    cdef _start(self, Part part):
        """Start to move the first part of a queue."""
        cdef Job job
        if self.connection is None:
            return                      # `attached` starts it
        part.begin_ns = part.moved_ns = now_ns()
        try:
            if not part.is_sending:
                self._read_ready(part)
            if part.first_vector == part.vector_count:
                self._part_moved(part)
                return
            job = self.connection.new_job(
                SEND if part.is_sending else RECEIVE,
                part.vectors + part.first_vector, part.vector_count - part.first_vector,
            )
            job.subject = part
            part.job = job
            job.begin(self.path.queue, weakref.ref(self))
        except OSError as error:
            part.job = None
            self.fail(error.errno or EIO)

    cdef _read_ready(self, Part part):
        """Take what has left the socket already: a job waits for the socket only."""
        cdef iovec *vector
        cdef Py_ssize_t moved
        while part.first_vector < part.vector_count:
            vector = part.vectors + part.first_vector
            moved = self.connection.read_ready(<char *> vector.iov_base, vector.iov_len)
            if moved == 0:
                return
            vector.iov_base = <char *> vector.iov_base + moved
            vector.iov_len -= moved
            if vector.iov_len == 0:
                part.first_vector += 1

    def _job_ended(self, Job job, int progress, int error, size_t moved_bytes):
        """Called by the completion queue of the loop."""
        cdef Part part = job.subject
        job.subject = None
        part.job = None
        if self.is_dead:
            return
        if progress == COMPLETE:
            part.whole.busy_ns = max(part.whole.busy_ns, job.busy_ns)
            part.whole.waited_ns = job.waited_ns
            self._part_moved(part)
        else:
            self.fail(ECONNRESET if progress == END_OF_STREAM else error or EIO)

    cdef _part_moved(self, Part part):
        cdef list parts = self.sending if part.is_sending else self.receiving
        if not part.is_right():
            self.fail(EPROTO)
            return
        parts.pop(0)
        self.moved_anything = True
        if part.is_sending:
            self._note_rate(part)
        if parts:
            self._start(parts[0])
        part.whole.part_ended(part, 0)

    cdef _note_rate(self, Part part):
        cdef int64_t spent_ns = now_ns() - part.begin_ns
        if part.nbytes >= RATED_BYTES and spent_ns > 0:
            rate = part.nbytes * 1e9 / spent_ns
            self.rate = rate if self.rate == 0 else (self.rate + rate) / 2
            self.rate_ns = now_ns()

    def attached(self, JoinedSocket connection not None):
        """The connection is open: move what has waited for it."""
        self.connection = connection
        _counts["open"] += 1
        _counts["opened"] += 1
        for parts in (self.receiving, self.sending):
            if parts and not self.is_dead:
                self._start(parts[0])

    cpdef fail(self, int code):
        """Close the lane. Its parts end with an errno."""
        cdef Part part
        cdef Job job
        cdef bint is_in_use = False
        if self.is_dead:
            return
        self.is_dead = True
        parts = [*self.receiving, *self.sending]
        self.receiving.clear()
        self.sending.clear()
        for part in parts:
            job, part.job = part.job, None
            if job is not None and job.cancel((part, part.whole.frames), self.connection.close):
                is_in_use = True        # by a thread that is stuck: it closes the socket later
        if self.connection is not None:
            _counts["open"] -= 1
            if not is_in_use:
                self.connection.close()
        self.path.lane_ended(self, code)
        for part in parts:
            part.whole.part_ended(part, code)


# ---------------------------------------------------------------- the path

@cython.auto_pickle(False)
@cython.final
cdef class LanesPath(Path):
    """Moves frames in parts, by as many lanes as are open.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Of the comm.
    token : bytes
        Names this comm to the peer, where new lanes arrive.
    lane_limit : int
        The most lanes that both sides accept.
    least_bytes : int
        The smallest frame that is offered.
    is_auto : bool
        Whether this side finds out how many lanes pay; used at the client only.

    Attributes
    ----------
    lanes : list of Lane or None
        By number.
    is_closed : bool
        Whether the comm has ended.
    on_lost : callable or None
        Called with each lane that is lost while the comm goes on.
    on_closed : callable or None
        Called at the end of the comm.
    ways : list of dask_fabric.paths.lanes.interfaces.Way
        To other interfaces of the server; at the client only.
    policy : Policy or None
        Of the peer's host, from the first measurement on; at the client only.
    """

    def __init__(self, loop, bytes token, lane_limit, least_bytes, is_auto=False):
        Path.__init__(self, NAME, NUMBER, 1 << HOST_MEMORY, sizeof(Descriptor), least_bytes)
        self.loop = loop
        self.token = token
        self.lane_limit = min(<int> lane_limit, <int> LANE_LIMIT)
        self.is_auto = is_auto
        self.lanes = [None] * LANE_LIMIT
        self.ways = []
        self.unanswered = []
        # What arrived is right, whatever becomes of the sender: its kernel has copied the bytes.
        self.needs_living_sender = False
        _paths.add(self)

    @property
    def lane_count(self):
        """How many lanes are open."""
        cdef Lane lane
        cdef int count = 0
        for lane in self.lanes:
            count += lane is not None and lane.connection is not None and not lane.is_retired
        return count

    @property
    def connection_count(self):
        return self.lane_count

    @property
    def flows(self):
        cdef Lane lane
        policy = self.policy
        addresses = {
            lane.connection.sock.getsockname()[0]
            for lane in self.lanes
            if lane is not None and lane.connection is not None and not lane.is_dead
        }
        if policy is None and not addresses:
            return {}
        return {
            "rates": [] if policy is None else policy.paid(),
            "is_settled": policy is None or policy.is_settled,
            "addresses": sorted(addresses),
        }

    def use_dialer(self, dial):
        from dask_fabric.paths.lanes.opener import Opener

        return Opener(self, dial, self.owner().peer_sockname[0]).moved

    @property
    def channel(self):
        """The channel of the comm; None once it is gone."""
        return self.owner()

    def receive_seconds(self):
        """The time that receives of large messages took so far, on the stream and by lanes."""
        cdef Metrics stream = self.owner().core.metrics
        cdef uint64_t spent_ns = 0
        for metrics in (stream, self.metrics):
            if metrics is not None and (<Metrics> metrics).times != NULL:
                spent_ns += (<Metrics> metrics).times.receive_ns.total
        return spent_ns / 1e9

    def retire_from(self, int count):
        """Have the peer close the lanes from this number on, once nothing moves on them.

        This side sends nothing more on them. What the peer has begun to send is still received.
        """
        cdef Lane lane
        for lane in self.lanes[count:]:
            if lane is None or lane.connection is None:
                continue
            if not lane.is_retired and not lane.sending:
                lane.is_retired = True
                self.described_ns = 0
                lane.connection.end_sending()
            elif lane.is_retired and not lane.receiving and lane.connection.is_lost():
                lane.fail(ECONNRESET)

    @property
    def is_encrypted(self):
        """Whether the stream is inside TLS, so that lanes must be."""
        channel = self.owner()
        return channel is not None and channel.transport.cipher is not None

    def new_lane(self, int number, int epoch, JoinedSocket connection=None):
        """Add a lane, which replaces the one that had its number.

        Parameters
        ----------
        number : int
        epoch : int
            From 0 to 255; of two connections of one number, they are different.
        connection : dask_fabric.paths.joined.JoinedSocket, optional
            None while it is dialled: call `Lane.attached` or `Lane.fail` in the end.

        Returns
        -------
        Lane
        """
        cdef Lane lane = self.lanes[number]
        if lane is not None:
            lane.fail(ECONNABORTED)
        lane = Lane.__new__(Lane)
        lane.path = self
        lane.number = number
        lane.epoch = epoch
        lane.sending = []
        lane.receiving = []
        self.lanes[number] = lane
        self.described_ns = 0
        if connection is not None:
            lane.attached(connection)
        return lane

    def lane_ended(self, Lane lane not None, int code):
        """Called by a lane that has failed, or is closed."""
        if self.lanes[lane.number] is lane:
            self.lanes[lane.number] = None
        self.described_ns = 0
        if self.is_closed:
            return
        if lane.connection is not None and not lane.is_retired:
            _counts["lost"] += 1
            logger.debug("Lane %d is lost: %s", lane.number, os.strerror(code))
        if self.on_lost is not None:
            self.on_lost(lane)

    # ------------------------------------------------------------ the sending side

    cdef bint takes(self, const Slot *slot) noexcept:
        cdef int number
        if not Path.takes(self, slot):
            return False
        if now_ns() - self.described_ns > DESCRIBED_NS:
            self._describe_lanes()
        for number in range(LANE_LIMIT):
            if self.described.shares[number]:
                return True
        return False

    cdef _describe_lanes(self):
        """Find out which lanes are open, and give each a share in proportion to its speed."""
        cdef Lane lane
        cdef int64_t time_ns = now_ns()
        cdef double fastest = 0, rate
        memset(&self.described, 0, sizeof(self.described))
        for lane in list(self.lanes):
            if lane is None or lane.connection is None or lane.is_retired:
                continue
            if not lane.sending and not lane.receiving and lane.connection.is_lost():
                lane.fail(ECONNRESET)
                continue
            if time_ns - lane.rate_ns > RATED_NS:
                lane.rate = 0
            fastest = max(fastest, lane.rate)
        for lane in self.lanes:
            if lane is not None and lane.connection is not None and not lane.is_retired:
                rate = lane.rate or fastest or 1
                self.described.shares[lane.number] = max(
                    <int> SHARE_LEAST, <int> (SHARE_LIMIT * rate / (fastest or 1))
                )
                self.described.epochs[lane.number] = lane.epoch
        self.described_ns = now_ns()

    cdef int describe(self, Slot *slot) except -1:
        memcpy(slot.descriptor, &self.described, sizeof(Descriptor))
        return 0

    cdef int offer(self, Lease lease, FrameSet frames) except -1:
        cdef LanesJob job = self._new_job(frames, True)
        job.subject = (lease, self)
        job.begin(self.queue, self.owner)
        lease.pin(job)
        self.unanswered.append(job)
        self.loop.call_soon(job.started)    # not at once: the caller is in the middle of a send
        return 0

    cdef LanesJob _new_job(self, FrameSet frames, bint is_sending):
        cdef LanesJob job = LanesJob.__new__(LanesJob)
        cdef Part part
        cdef int number
        reap()
        job.frames = frames
        job.is_sending = is_sending
        job.nbytes = frames.nbytes
        job.parts = []
        for number in range(LANE_LIMIT):
            part = self._new_part(frames, number, is_sending)
            if part.vector_count:
                part.whole = job
                job.parts.append(part)
        return job

    cdef Part _new_part(self, FrameSet frames, int number, bint is_sending):
        """Collect the parts that a lane has of some frames."""
        cdef Part part = Part.__new__(Part)
        cdef Lane lane = self.lanes[number]
        cdef Descriptor descriptor
        cdef PartHeader *header
        cdef uint64_t begin = 0, nbytes
        cdef uint32_t index
        cdef Slot *slot
        part.lane = lane
        part.is_sending = is_sending
        part.is_valid = True
        for index in range(frames.count):
            slot = &frames.slots[index]
            memcpy(&descriptor, slot.descriptor, sizeof(descriptor))
            nbytes = _bounds(&descriptor, number, slot.nbytes, &begin)
            if nbytes == 0:
                continue
            if part.vectors == NULL:
                part.vectors = <iovec *> calloc(2 * frames.count, sizeof(iovec))
                part.headers = <PartHeader *> calloc(2 * frames.count, sizeof(PartHeader))
                if part.vectors == NULL or part.headers == NULL:
                    raise MemoryError()
                part.arrived = part.headers + frames.count
            if lane is None or descriptor.epochs[number] != lane.epoch:
                part.is_valid = False
            header = part.headers + part.header_count
            header[0] = PartHeader(
                frames.sequence, slot.index, number, descriptor.epochs[number], 0
            )
            if not is_sending:
                header = part.arrived + part.header_count
            part.header_count += 1
            part.vectors[part.vector_count] = iovec(header, sizeof(PartHeader))
            part.vectors[part.vector_count + 1] = iovec(slot.data + begin, nbytes)
            part.vector_count += 2
            part.nbytes += nbytes
        return part

    cdef void acknowledged(self) noexcept:
        self.unanswered.pop(0)

    cdef bint fell_back(self) noexcept:
        """What the receiver did not get was on a lane that it has closed, perhaps unseen here."""
        cdef LanesJob job = self.unanswered.pop(0)
        cdef Part part
        for part in job.parts:
            if not part.has_ended and part.lane is not None:
                if part.job is None or part.job._is_in_use():
                    # Later: the caller still handles the answer.
                    self.loop.call_soon(part.lane.fail, ECONNABORTED)
        return False

    # ------------------------------------------------------------ the receiving side

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        cdef LanesJob job = self._new_job(transfer.frames, False)
        cdef Part part
        cdef uint64_t nbytes = 0
        for part in job.parts:
            nbytes += part.nbytes
        if nbytes != transfer.frames.nbytes:
            transfer.error = EPROTO     # descriptors without any share
            return NOT_FETCHED
        job.subject = transfer
        transfer.job = job
        job.begin(self.queue, self.owner)
        job.left_count -= 1
        if job.left_count:
            return STARTED
        job.parts = []
        self.queue.forget(job)
        transfer.job = None
        transfer.error = job.error
        return NOT_FETCHED if job.error else FETCHED

    cdef double tend(self, Transfer transfer) except? -3.0:
        """Close lanes that stand still while others move, or after some have finished: those of one
        link stop at the same time. If all stand still, the peer is busy or stopped.
        """
        cdef LanesJob job = transfer.job
        cdef int64_t time_ns = now_ns()
        cdef uint64_t moved_bytes
        cdef double still_seconds
        cdef Part part
        waiting = [part for part in job.parts if not part.has_ended]
        for part in waiting:
            if part.job is not None:
                moved_bytes = part.lane.connection.moved_bytes(part.job)
                if moved_bytes > part.moved_bytes:
                    part.moved_bytes = moved_bytes
                    part.moved_ns = job.moved_ns = time_ns
        if time_ns - job.moved_ns > STILL_SECONDS * 1e9:
            transfer.error = ETIMEDOUT
            return ABANDON
        for part in waiting:
            still_seconds = (time_ns - part.moved_ns) / 1e9
            if still_seconds > STALLED_SECONDS and job.moved_ns > part.moved_ns or (
                still_seconds > LAST_SECONDS and len(waiting) < len(job.parts)
            ):
                # Later: the caller still handles the transfer, which this may end.
                self.loop.call_soon(part.lane.fail, ETIMEDOUT)
        return TEND_SECONDS

    cdef int cancel(self, Transfer transfer) except -1:
        (<LanesJob> transfer.job).cancel()
        return 0

    # ------------------------------------------------------------ both

    cdef _close_lanes(self, int code):
        cdef Lane lane
        for lane in list(self.lanes):
            if lane is not None:
                lane.fail(code)

    cdef void fail(self) noexcept:
        self._close_lanes(ECONNABORTED)

    cdef void close(self) noexcept:
        self.is_closed = True
        self._close_lanes(ECONNABORTED)
        self.unanswered.clear()
        on_closed, self.on_closed, self.on_lost = self.on_closed, None, None
        if on_closed is not None:
            on_closed()

    def _forked(self):
        """In a forked child: close the copies of the sockets."""
        cdef Lane lane
        self.is_closed = True
        for lane in self.lanes:
            if lane is not None and lane.connection is not None:
                lane.is_dead = True
                lane.connection.forked()

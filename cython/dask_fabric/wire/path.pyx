"""The interface that each path implements.

Theory of operation
-------------------
A path carries large frames beside the stream. A `Path` object is one end of it, for one comm. What
a frame goes through, with the methods that are called:

1. Sender, in `send`: `takes` chooses the first path that accepts the frame. `describe` writes its
   *descriptor*, some bytes by which the receiver finds the frame. The message is queued, then
   `offer` is called: the frame is under a lease. A path may start a send job here and pin the
   lease.
2. Receiver: `place` allocates the frame's memory. `fetch` fills it at once, or starts a job.
3. While the job runs, `tend` is called after each delay that it returned. It reports that a
   transfer is stuck (`ABANDON`, `HOPELESS`). `cancel` ends a transfer early.
4. If `needs_living_sender`, the channel checks after the transfer that the sender still lives:
   otherwise the bytes may not be the frame's. The end of a stream between hosts, or by TCP, may
   arrive late. So a path had better check by itself too, and end with the error `REVOKED`.
5. The receiver acknowledges the message, or requests its frames over the stream. At the sender
   this calls `acknowledged` or `fell_back`, and `released` when the lease ends.

A path serves one connection in one event loop, and never blocks that loop. Work that may take long
is a job of native threads. Its completion is posted to `queue` and handed to the channel.

`fail` is called when the path is found broken: it ends all its jobs with errors. Nothing more is
offered then. If the path `recovers`, `retry` is called from time to time, until the path works
again. `close` is called once, at the end of the connection.
"""

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.wire.frames cimport FrameSet, Slot, new_frame
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease
from dask_fabric.wire.records cimport HOST_MEMORY, OFFER_BYTES

NO_PATHS = []       # shared by all comms that have only the stream; always empty


@cython.auto_pickle(False)
@cython.final
cdef class Transfer:
    """One movement of frames by one path: all frames of a message, or the next window of many."""


@cython.auto_pickle(False)
cdef class Path:
    """One end of a path, for the frames of one comm.

    Parameters
    ----------
    name, number, memory_kinds, descriptor_bytes, least_bytes
        See below.

    Attributes
    ----------
    name : str
    number : int
        Its number on the wire, from 1 to 31.
    memory_kinds : int
        Set (``1 << kind``) of the kinds of memory that frames may be in.
    descriptor_bytes : int
        The size of the descriptor of a frame.
    least_bytes : int
        The smallest frame of host memory that is offered. Of device frames all but empty ones are.
    needs_living_sender : bool
        Whether a fetched frame is valid only if the sender still lives after the fetch.
    takes_memory : bool
        Whether fetched frames lie in memory of this process; false if they are mapped.
    offers : bool
        Whether this side offers frames; false while the path is broken.
    recovers : bool
        Whether a broken path may be tried again, by `retry`.
    """

    def __init__(self, name, number, memory_kinds=1, descriptor_bytes=0, least_bytes=OFFER_BYTES):
        self.name, self.number = name, number
        self.memory_kinds = memory_kinds
        self.descriptor_bytes = descriptor_bytes
        self.least_bytes = least_bytes

    def __cinit__(self, *args, **kwargs):
        self.offers = True
        self.needs_living_sender = self.takes_memory = True

    cdef Metrics counting(self):
        """The metrics of this path, made at the first use: most comms never need them."""
        if self.metrics is None:
            self.metrics = Metrics()
        return self.metrics

    @property
    def connection_count(self):
        """How many connections the path has beside the stream."""
        return 0

    @property
    def flows(self):
        """What was found out about several connections to this peer; empty if nothing.

        ``rates`` has pairs of a number of connections and their bytes per second: of one, and of
        each number that was faster. ``is_settled`` says whether no more are tried, and
        ``addresses`` from where further connections go.
        """
        return {}

    def use_dialer(self, dial):
        """As the client, use a function that opens one more connection to the server.

        Parameters
        ----------
        dial : callable
            Called with what the connection's hello says in ``joins``; and, to go to another
            address of the server, with its family, that address, and the own one. Returns a
            coroutine, which gives a `dask_fabric.paths.joined.JoinedSocket`.

        Returns
        -------
        callable or None
            To be called with the bytes of each message, and whether it was sent or received.
        """
        return None

    # ------------------------------------------------------------ the sending side

    cdef bint takes(self, const Slot *slot) noexcept:
        """Whether to offer a frame by this path."""
        if not self.offers or not self.memory_kinds >> slot.memory & 1:
            return False
        if slot.memory == HOST_MEMORY:
            return slot.nbytes >= <uint64_t> self.least_bytes
        return slot.nbytes > 0

    cdef int describe(self, Slot *slot) except -1:
        """Write the descriptor of a frame that is about to be offered."""
        return 0

    cdef int offer(self, Lease lease, FrameSet frames) except -1:
        """Frames are on offer now. A path that starts to send them pins the lease for its job."""
        return 0

    cdef void acknowledged(self) noexcept:
        """The receiver has fetched and acknowledged the frames of a message."""

    cdef int released(self, FrameSet frames) except -1:
        """A lease has ended. Its frames may include those of other paths."""
        return 0

    cdef bint fell_back(self) noexcept:
        """The receiver could not fetch. Returns whether the path is broken."""
        return False

    cpdef double retry(self) except? -3.0:
        """Try whether a broken path works again, without a frame that could be lost.

        Called a while after `stop_offering`, and again after each delay that it returned.

        Returns
        -------
        float
            Seconds until the next call; `RECOVERED` or `STILL_BROKEN`.
        """
        return STILL_BROKEN     # untested: paths that recover override it

    # ------------------------------------------------------------ the receiving side

    cdef object place(self, Slot *slot):
        """Allocate a frame in host memory, and store its address in `slot.data`.

        A path that maps frames may leave that to `fetch`, and return None.
        """
        return new_frame(slot.nbytes, &slot.data, 0)

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        """Fetch frames into the memory that `place` gave them, at once or by a job."""
        raise NotImplementedError

    cdef double tend(self, Transfer transfer) except? -3.0:  # untested: paths with jobs override it
        """Check the progress of a transfer.

        Called when the transfer has started, and then after each delay that it returned.

        Returns
        -------
        float
            Seconds until the next check, 0 for none; `ABANDON`, `HOPELESS` or `ARRIVED`.
        """
        return 0.0              # untested: as above

    cdef int cancel(self, Transfer transfer) except -1:
        """Cancel a transfer. Memory that may still be written to goes into quarantine."""
        return 0

    cdef bint has_lost_sender(self) noexcept:
        """Whether the sender's process is known to have ended, though its stream may be open."""
        return False

    cdef int sender_fd(self) except -2:
        """A new file descriptor, readable once the sender's process has ended; -1 for none."""
        return -1

    # ------------------------------------------------------------ both

    cdef void fail(self) noexcept:
        """The path is broken: end its jobs with errors."""

    cdef void close(self) noexcept:
        """The connection ends: end the jobs that send its frames."""

"""What a path is: the interface that each path implements.

Theory of operation
-------------------
A *path* here is one end of the way that large frames of one comm take instead of the stream. The
sender *offers* a frame: its entry in the message names the path and is followed by a *descriptor*,
some bytes by which the receiver's end finds the frame. The receiver gives it memory (`place`) and
*fetches* it; then it acknowledges the message, and the sender frees it. Where a fetch fails, the
receiver requests the frames, and they are sent on the stream.

A path serves one connection, in one event loop. It never blocks that loop: what may take long is a
job of native threads, whose end is posted to `queue` and handed to the channel.
"""

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.wire.frames cimport FrameSet, Slot, new_frame
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease
from dask_fabric.wire.records cimport HOST_MEMORY, OFFER_BYTES

NO_PATHS = []       # of every comm that has only the stream; it stays empty


@cython.auto_pickle(False)
@cython.final
cdef class Transfer:
    """One movement of frames by one path: all of a message, or the next of very many."""


@cython.auto_pickle(False)
cdef class Path:
    """One end of a comm's frames beside the stream.

    Parameters
    ----------
    name, number, memory_kinds, descriptor_bytes, least_bytes
        See below.

    Attributes
    ----------
    name : str
    number : int
        What the path is on the wire, from 1 to 31.
    memory_kinds : int
        Set (``1 << kind``) of the kinds of memory that frames may be in.
    descriptor_bytes : int
        The size of the descriptor of a frame.
    least_bytes : int
        The size from which on frames of host memory are offered; those of devices are, unless they
        are empty.
    needs_living_sender : bool
        Whether a frame that was fetched is valid only if the sender was still there afterwards.
    offers : bool
        Whether this side offers frames; false where the path turned out to be broken.
    """

    def __init__(self, name, number, memory_kinds=1, descriptor_bytes=0, least_bytes=OFFER_BYTES):
        self.name, self.number = name, number
        self.memory_kinds = memory_kinds
        self.descriptor_bytes = descriptor_bytes
        self.least_bytes = least_bytes

    def __cinit__(self, *args, **kwargs):
        self.offers = True
        self.needs_living_sender = True

    cdef Metrics counting(self):
        """Give what counts the frames of this path; most comms never need it."""
        if self.metrics is None:
            self.metrics = Metrics()
        return self.metrics

    # ------------------------------------------------------------ of the side that sends

    cdef bint takes(self, const Slot *slot) noexcept:
        """Whether a frame is to be offered by this path."""
        if not self.offers or not self.memory_kinds >> slot.memory & 1:
            return False
        if slot.memory == HOST_MEMORY:
            return slot.nbytes >= <uint64_t> self.least_bytes
        return slot.nbytes > 0

    cdef int describe(self, Slot *slot) except -1:
        """Write the descriptor of a frame that is about to be offered."""
        return 0

    cdef int offer(self, Lease lease, FrameSet frames) except -1:
        """Frames are on offer from now on; a job that starts to send them pins the lease."""
        return 0

    cdef void acknowledged(self) noexcept:
        """The receiver has fetched a message of frames."""

    cdef int released(self, FrameSet frames) except -1:
        """Nobody needs frames any more that were on offer; those by other paths are among them."""
        return 0

    cdef bint fell_back(self) noexcept:
        """The receiver could not fetch; give whether nothing more is to be offered by this path."""
        return False

    # ------------------------------------------------------------ of the side that receives

    cdef object place(self, Slot *slot):
        """Give a frame of host memory its memory, and write where that is into `data`.

        A path that maps frames may leave that to `fetch`, and give None.
        """
        return new_frame(slot.nbytes, &slot.data, 0)

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        """Fetch frames that have memory, here and now or by a job."""
        raise NotImplementedError

    cdef double tend(self, Transfer transfer) except? -3.0:
        """Look after a transfer that was started.

        Called first when it has started, and then after the time that it gave before.

        Returns
        -------
        float
            After how many seconds to look again, 0 for never; `ABANDON`, `HOPELESS` or `ARRIVED`.
        """
        return 0.0

    cdef bint cancel(self, Transfer transfer) except -1:
        """End a transfer; True if something may still write to its memory, which then lives on."""
        return False

    cdef bint has_lost_sender(self) noexcept:
        """Whether this path knows that the sender's process has ended, beside what the stream says.
        """
        return False

    cdef int sender_fd(self) except -2:
        """A new descriptor that is readable when the sender's process has ended; -1: there is none.
        """
        return -1

    # ------------------------------------------------------------ both

    cdef void fail(self) noexcept:
        """The path is broken: end what is under way, with errors."""

    cdef void close(self) noexcept:
        """The connection ends, and so does whatever was started for what it sends."""

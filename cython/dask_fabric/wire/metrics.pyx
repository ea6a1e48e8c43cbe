"""Counters and times of one path, of one comm or summed over several.

Always on: a small message costs some integer additions, and no call of the clock.
"""

cimport cython
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from dask_fabric.clock cimport now_ns
from dask_fabric.histogram cimport BUCKET_COUNT, Histogram, note
from dask_fabric.wire.frames cimport FrameSet

HISTOGRAM_BUCKET_COUNT = BUCKET_COUNT

cdef enum:
    COUNT_OF_COUNTS = 16 + 2 * (BUCKET_COUNT + 1)      # in Counts: 16, and 2 histograms
    COUNT_OF_NUMBERS = COUNT_OF_COUNTS + 3 * (BUCKET_COUNT + 1)     # with those in Times

assert COUNT_OF_COUNTS * sizeof(uint64_t) == sizeof(Counts)
assert (COUNT_OF_NUMBERS - COUNT_OF_COUNTS) * sizeof(uint64_t) == sizeof(Times)

cdef const Times NO_TIMES

cdef packed struct Packed:
    uint16_t place
    uint64_t value


@cython.auto_pickle(False)
@cython.final
cdef class Metrics:
    """Counters, times and histograms of one path."""

    def __dealloc__(self):
        free(self.times)

    cdef Times *_timed(self) noexcept:
        """Allocate the times at the first use; NULL if memory is short."""
        if self.times == NULL:
            self.times = <Times *> calloc(1, sizeof(Times))
        return self.times

    def add(self, Metrics other):
        """Add the counts of another object."""
        _add(<uint64_t *> &self.counts, <const uint64_t *> &other.counts, COUNT_OF_COUNTS)
        if other.times != NULL and self._timed() != NULL:
            _add(
                <uint64_t *> self.times, <const uint64_t *> other.times,
                COUNT_OF_NUMBERS - COUNT_OF_COUNTS,
            )

    def packed(self):
        """Encode all counts compactly: the place and value of each number that is not 0.

        Returns
        -------
        bytes
        """
        cdef const uint64_t *numbers = <const uint64_t *> &self.counts
        cdef Packed out[COUNT_OF_NUMBERS]
        cdef Py_ssize_t used = 0
        cdef int place, count = COUNT_OF_COUNTS if self.times == NULL else COUNT_OF_NUMBERS
        for place in range(count):
            if place == COUNT_OF_COUNTS:
                numbers = <const uint64_t *> self.times - COUNT_OF_COUNTS
            if numbers[place]:
                out[used] = Packed(place, numbers[place])
                used += 1
        return (<char *> &out[0])[: used * sizeof(Packed)]

    def subtract(self, bytes packed):
        """Subtract counts that `packed` returned earlier, which leaves those since then."""
        cdef uint64_t *numbers = <uint64_t *> &self.counts
        cdef const Packed *entries = <const Packed *> <const char *> packed
        cdef Py_ssize_t index
        cdef int place
        for index in range(len(packed) // <Py_ssize_t> sizeof(Packed)):
            place = entries[index].place
            if place < COUNT_OF_COUNTS:
                numbers[place] -= entries[index].value
            elif self._timed() != NULL:
                (<uint64_t *> self.times)[place - COUNT_OF_COUNTS] -= entries[index].value

    def copy(self):
        """Return another object with the same counts."""
        cdef Metrics other = Metrics.__new__(Metrics)
        other.counts = self.counts
        if self.times != NULL and other._timed() != NULL:
            other.times[0] = self.times[0]
        return other

    def serialized(self, int64_t spent_ns):
        """Add the time that serializing a message took; tiny ones are not measured."""
        self.counts.serialize_ns += spent_ns

    def deserialized(self, int64_t spent_ns):
        """Add the time that deserializing a message took; tiny ones are not measured."""
        self.counts.deserialize_ns += spent_ns

    def let_go(self):
        """The comm has ended, and with it all leases: nothing is unacknowledged any more."""
        self.counts.unacknowledged_bytes = 0

    cdef void offered(self, FrameSet frames) noexcept:
        """Count frames that are offered to the peer."""
        self.counts.bytes_sent += frames.nbytes
        self.counts.frames_sent += frames.count

    cdef void fell_back(self, FrameSet frames) noexcept:
        """Count offered frames that are sent on the stream instead."""
        self.counts.fallback_bytes += frames.nbytes

    cdef void fetched(self, FrameSet frames) noexcept:
        """Count frames that were fetched."""
        self.counts.bytes_received += frames.nbytes
        self.counts.frames_received += frames.count

    cdef void allocated(self, int64_t begin_ns) noexcept:
        """Add the time since `begin_ns` as time of allocation."""
        self.counts.allocate_ns += now_ns() - begin_ns

    cdef void sent(self, int64_t begin_ns, int64_t waited_ns, int64_t busy_ns) noexcept:
        """Count a send job, with the times that it waited for the loop and moved bytes.

        With `busy_ns` 0 (unknown), the job counts as busy all the time.
        """
        cdef int64_t spent_ns = now_ns() - begin_ns
        if self._timed() != NULL:
            note(&self.times.send_ns, spent_ns)
        self._moved(spent_ns, waited_ns, busy_ns)

    cdef void received(self, int64_t begin_ns, int64_t waited_ns, int64_t busy_ns) noexcept:
        """Count a receive job, as `sent`."""
        cdef int64_t spent_ns = now_ns() - begin_ns
        if self._timed() != NULL:
            note(&self.times.receive_ns, spent_ns)
        self._moved(spent_ns, waited_ns, busy_ns)

    cdef void _moved(self, int64_t spent_ns, int64_t waited_ns, int64_t busy_ns) noexcept:
        """Split the time of a job into waiting for the loop, moving bytes, and (the rest) waiting
        for the peer."""
        cdef int64_t moving_ns = max(<int64_t> 0, spent_ns - waited_ns)
        if busy_ns == 0 or busy_ns > moving_ns:
            busy_ns = moving_ns
        self.counts.loop_ns += waited_ns
        self.counts.wire_ns += busy_ns
        self.counts.peer_ns += moving_ns - busy_ns

    cdef void answered(self, int64_t begin_ns) noexcept:
        cdef int64_t spent_ns = now_ns() - begin_ns
        if self._timed() != NULL:
            note(&self.times.answer_ns, spent_ns)
        self.counts.peer_ns += spent_ns

    def brief(self):
        """Return only bytes and seconds.

        Returns
        -------
        tuple
            Bytes sent and received, fallbacks, and seconds of waiting for the loop, allocating, on
            the wire, waiting for the peer, and of serializing and deserializing together.
        """
        cdef Counts *counts = &self.counts
        return (
            counts.bytes_sent, counts.bytes_received,
            counts.fallbacks_sent + counts.fallbacks_received,
            counts.loop_ns / 1e9, counts.allocate_ns / 1e9, counts.wire_ns / 1e9,
            counts.peer_ns / 1e9, (counts.serialize_ns + counts.deserialize_ns) / 1e9,
        )

    def as_dict(self):
        """Return everything by name.

        Returns
        -------
        dict
            Counts, ``*_seconds``, ``unacknowledged_bytes`` at the time of the copy, and
            ``histograms``: each has ``counts`` (bucket i counts values above 2**(i - 1) and up to
            2**i; trailing zeros are left out) and the ``sum`` of the values.
        """
        cdef Counts *counts = &self.counts
        cdef const Times *times = &NO_TIMES if self.times == NULL else self.times
        return {
            "messages_sent": counts.messages_sent,
            "messages_received": counts.messages_received,
            "bytes_sent": counts.bytes_sent,
            "bytes_received": counts.bytes_received,
            "frames_sent": counts.frames_sent,
            "frames_received": counts.frames_received,
            "fallbacks_sent": counts.fallbacks_sent,
            "fallbacks_received": counts.fallbacks_received,
            "fallback_bytes": counts.fallback_bytes,
            "unacknowledged_bytes": counts.unacknowledged_bytes,
            "send_seconds": times.send_ns.total / 1e9,
            "receive_seconds": times.receive_ns.total / 1e9,
            "loop_seconds": counts.loop_ns / 1e9,
            "allocate_seconds": counts.allocate_ns / 1e9,
            "wire_seconds": counts.wire_ns / 1e9,
            "peer_seconds": counts.peer_ns / 1e9,
            "serialize_seconds": counts.serialize_ns / 1e9,
            "deserialize_seconds": counts.deserialize_ns / 1e9,
            "histograms": {
                "sent_message_bytes": _plain(&counts.sent_message_bytes),
                "received_message_bytes": _plain(&counts.received_message_bytes),
                "send_ns": _plain(&times.send_ns),
                "receive_ns": _plain(&times.receive_ns),
                "answer_ns": _plain(&times.answer_ns),
            },
        }


cdef void _add(uint64_t *sums, const uint64_t *more, Py_ssize_t count) noexcept:
    cdef Py_ssize_t index
    for index in range(count):
        sums[index] += more[index]


cdef _plain(const Histogram *histogram):
    cdef int end = BUCKET_COUNT
    while end > 0 and histogram.counts[end - 1] == 0:
        end -= 1
    return {"counts": [histogram.counts[i] for i in range(end)], "sum": histogram.total}


def histogram_of(values):
    """Count integers as the engine counts sizes and times.

    Parameters
    ----------
    values : iterable of int

    Returns
    -------
    dict
        As in `Metrics.as_dict`.
    """
    cdef Histogram histogram
    cdef uint64_t value
    memset(&histogram, 0, sizeof(histogram))
    for value in values:
        note(&histogram, value)
    return _plain(&histogram)


def time_of_counting(int64_t count):
    """Measure what counting costs per small message, in either direction.

    Parameters
    ----------
    count : int
        How many messages to count.

    Returns
    -------
    float
        Nanoseconds per message.
    """
    cdef Metrics metrics = Metrics()
    cdef volatile uint64_t nbytes = 100     # keeps the compiler from merging the additions
    cdef int64_t begin_ns = now_ns()
    for _ in range(count):
        note(&metrics.counts.sent_message_bytes, nbytes)
    return (now_ns() - begin_ns) / <double> count

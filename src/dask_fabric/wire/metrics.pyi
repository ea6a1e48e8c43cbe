"""Counters and times of one path, of one comm or summed over several.

Always on: a small message costs some integer additions, and no call of the clock.
"""

from typing import TypedDict

from dask_fabric.histogram import BUCKET_COUNT, Histogram

HISTOGRAM_BUCKET_COUNT = BUCKET_COUNT

class Metrics:
    """Counters, times and histograms of one path."""
    def add(self, other: Metrics):
        """Add the counts of another object."""
    def packed(self):
        """Encode all counts compactly: the place and value of each number that is not 0.

        Returns
        -------
        bytes
        """
    def subtract(self, packed: bytes):
        """Subtract counts that `packed` returned earlier, which leaves those since then."""
    def copy(self):
        """Return another object with the same counts."""
    def serialized(self, spent_ns: int):
        """Add the time that serializing a message took; tiny ones are not measured."""
    def deserialized(self, spent_ns: int):
        """Add the time that deserializing a message took; tiny ones are not measured."""
    def let_go(self):
        """The comm has ended, and with it all leases: nothing is unacknowledged any more."""
    def brief(self):
        """Return only bytes and seconds.

        Returns
        -------
        tuple
            Bytes sent and received, fallbacks, and seconds of waiting for the loop, allocating, on
            the wire, waiting for the peer, and of serializing and deserializing together.
        """
    def as_dict(self):
        """Return everything by name.

        Returns
        -------
        dict
            Counts, ``*_seconds``, ``unacknowledged_bytes`` at the time of the copy, and
            ``histograms``: each has ``counts`` (bucket i counts values above 2**(i - 1) and up to
            2**i; trailing zeros are left out) and the ``sum`` of the values.
        """

class Counts(TypedDict):
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    frames_sent: int
    frames_received: int
    fallbacks_sent: int
    fallbacks_received: int
    fallback_bytes: int
    unacknowledged_bytes: int
    loop_ns: int
    allocate_ns: int
    wire_ns: int
    peer_ns: int
    serialize_ns: int
    deserialize_ns: int
    sent_message_bytes: Histogram
    received_message_bytes: Histogram

class Times(TypedDict):
    send_ns: Histogram
    receive_ns: Histogram
    answer_ns: Histogram

class Packed(TypedDict):
    place: int
    value: int

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

def time_of_counting(count: int):
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

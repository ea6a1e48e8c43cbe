"""Counters and times of one path, of one comm or summed over several.

Always on: a small message costs some integer additions, and no call of the clock.
"""

from collections.abc import Iterable
from typing import Any

HISTOGRAM_BUCKET_COUNT: int

class Metrics:
    """Counters, times and histograms of one path."""
    def add(self, other: Metrics):
        """Add the counts of another object."""
    def packed(self) -> bytes:
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
    def brief(self) -> tuple[Any, ...]:
        """Return only bytes and seconds.

        Returns
        -------
        tuple
            Bytes sent and received, fallbacks, and seconds of waiting for the loop, allocating, on
            the wire, waiting for the peer, and of serializing and deserializing together.
        """
    def as_dict(self) -> dict[str, Any]:
        """Return everything by name.

        Returns
        -------
        dict
            Counts, ``*_seconds``, ``unacknowledged_bytes`` at the time of the copy, and
            ``histograms``: each has ``counts`` (bucket i counts values above 2**(i - 1) and up to
            2**i; trailing zeros are left out) and the ``sum`` of the values.
        """

def histogram_of(values: Iterable[int]) -> dict[str, Any]:
    """Count integers as the engine counts sizes and times.

    Parameters
    ----------
    values : iterable of int

    Returns
    -------
    dict
        As in `Metrics.as_dict`.
    """

def time_of_counting(count: int) -> float:
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

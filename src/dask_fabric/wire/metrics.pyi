"""What has moved by one path, of one comm or of several together, and what it had to wait for.

Always on: a small message costs additions to integers and no look at the clock.
"""

from collections.abc import Iterable
from typing import Any

HISTOGRAM_BUCKET_COUNT: int

class Metrics:
    """Counters, times and histograms of one path."""
    def add(self, other: Metrics):
        """Add what another object has counted."""
    def packed(self) -> bytes:
        """Give what is counted in a few bytes: of each number that is not 0, its place and value.

        Returns
        -------
        bytes
        """
    def subtract(self, packed: bytes):
        """Subtract what `packed` gave, so that what was counted since is left."""
    def copy(self):
        """Give another object with the same counts."""
    def serialized(self, spent_ns: int):
        """Count the time that it took to serialize a message that was not tiny."""
    def deserialized(self, spent_ns: int):
        """Count the time that it took to deserialize a message that was not tiny."""
    def let_go(self):
        """The comm has ended, and holds nothing for its peer any more."""
    def brief(self) -> tuple[Any, ...]:
        """Give bytes and seconds alone.

        Returns
        -------
        tuple
            Bytes sent and received, fallbacks, and seconds of waiting for the loop, allocating, on
            the wire, waiting for the peer, and of serializing and deserializing together.
        """
    def as_dict(self) -> dict[str, Any]:
        """Give everything by its name.

        Returns
        -------
        dict
            Counts, ``*_seconds``, ``unacknowledged_bytes`` of the time of the copy, and under
            ``histograms`` for each the ``counts`` (the one with the index i is of values up to 2**i
            and above 2**(i - 1); without zeros at the end) and the ``sum`` of the values.
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
    """Measure what the counting adds to one small message, in either direction.

    Parameters
    ----------
    count : int
        How many messages to count.

    Returns
    -------
    float
        Nanoseconds for one.
    """

"""The one pool of receive buffers of this process.

Below ``SMALL_BYTES`` a buffer is plain malloc. From there up it is a slab of a size class (32 per
doubling), which comes back to an idle list when its buffer dies and is handed out again, the most
recently used first.

What is resident stays near what was asked for, since Dask spills, pauses and kills by that: a slab
has 1/32 more than its frame at most. It may come from a larger class, up to a quarter more, while
what all buffers in use have borrowed so is little.
"""

from typing import Final

import typing_extensions

class Buffer(typing_extensions.Buffer):
    """Contiguous writeable host memory, handed back to the pool when its last view dies.

    Made by `allocate` only. Its content is undefined until it is written. It exports a
    one-dimensional buffer of format ``B``.

    Attributes
    ----------
    nbytes : int
        Length in bytes, as asked for.
    """

    nbytes: Final[int]

    def __init__(self): ...
    def __len__(self): ...

def allocate(nbytes: int, like: int = 0) -> Buffer:
    """Hand out memory for one frame.

    Parameters
    ----------
    nbytes : int
        Length in bytes; 0 is allowed.
    like : int
        An address; a pooled buffer lies in its cache line as what is there, in steps of 16 bytes.

    Returns
    -------
    Buffer
        Of exactly this length, its content undefined.

    Raises
    ------
    ValueError
        The length is negative.
    MemoryError
        The system does not give that much; the message names the size.
    """

def has_idle_memory() -> bool:
    """Whether `trim_idle` may have something to do, now or later."""

def trim_idle() -> None:
    """Give back what was idle for too long; under memory pressure, all that is idle."""

def trim(target_bytes=0) -> int:
    """Give the longest idle memory back until at most target_bytes are idle (0: all of it).

    Returns
    -------
    int
        Bytes given back.
    """

def checked(name, value, convert, most): ...
def checked_bytes(name, value): ...
def configure(
    *,
    max_idle_bytes: int | None = None,
    idle_seconds: float | None = None,
    pressure_limit_bytes: int | None = None,
):
    """Change settings of the pool, all or none; what is None stays as it is.

    Parameters
    ----------
    max_idle_bytes : int, optional
        Bound of the memory kept for later; 1 GiB at first. Larger frames are not cached.
    idle_seconds : float, optional
        How long memory is kept unused; 10 at first.
    pressure_limit_bytes : int, optional
        RSS of this process above which nothing is kept; 0, as at first, means no limit.

    Raises
    ------
    ConfigError
        A value is not usable; the message names it.
    """

def set_pressure_limit(rss_bytes):
    """Keep nothing while the RSS of this process is above rss_bytes; 0 means no limit."""

def statistics():
    """Figures of the pool, as a dict.

    ``in_use_*`` is what live buffers were asked for; ``idle_*``, ``evicted_bytes`` (no room
    within the bound, or under pressure) and ``trimmed_bytes`` (idle too long, or trimmed on
    request) are whole slabs, and so is ``pinned_bytes``, idle or not. ``hits_count`` and
    ``misses_count`` leave out small buffers.
    """

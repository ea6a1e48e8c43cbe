"""The pool of receive buffers of this process.

Theory of operation
-------------------
The problem: the kernel hands out fresh memory page by page, each cleared first, which costs more
than the copy into it. But memory that is kept idle counts as resident, and Dask spills, pauses and
kills workers by resident memory.

* Buffers below ``SMALL_BYTES`` are plain malloc. Larger ones are *slabs*, in size classes (32 per
  doubling, so that a slab exceeds its frame by at most 1/32). Frames above the pool's bound are
  allocated and freed each time.
* When a buffer's last view dies, its slab becomes *idle* (``memory.idle``): it goes on the free
  list of its class. `allocate` takes the most recently used slab, whose memory is still in the
  caches.
* If its class has no idle slab, a buffer may borrow one of a larger class, up to a quarter larger.
  The sum of what all buffers in use borrow is bounded (`most_bytes`).
* Idle slabs are bounded in bytes and in time, and freed at once under memory pressure. The oldest
  go first. Allocation and release free a few in passing, and native threads trim the rest.
* A slab may be *pinned*, for copies to and from a device. It then stays in the pool until the
  process ends.
* Writing one byte makes a whole huge page resident. So a buffer may forgo huge pages until it is
  recycled (`use_small_pages`): its pages then become resident as they are written.

The GIL guards buffers in use. A lock guards idle slabs, because threads without the GIL trim them.
"""

from typing import Final

import typing_extensions

class Buffer(typing_extensions.Buffer):
    """Contiguous writeable host memory, returned to the pool when its last view dies.

    Made by `allocate` only. Its content is undefined until it is written. It exports a
    one-dimensional buffer of format ``B``.

    Attributes
    ----------
    nbytes : int
        Length in bytes, as requested.
    """

    nbytes: Final[int]

    def __init__(self): ...
    def __len__(self): ...

def allocate(nbytes: int, like: int = 0) -> Buffer:
    """Allocate memory for one frame.

    Parameters
    ----------
    nbytes : int
        Length in bytes; 0 is allowed.
    like : int
        An address: a pooled buffer gets the same offset within a cache line, in steps of 16 bytes.

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
    """Free slabs that were idle for too long; under memory pressure, all idle slabs."""

def trim(target_bytes=0) -> int:
    """Free the longest idle slabs until at most target_bytes are idle (0: all of them).

    Returns
    -------
    int
        Bytes freed.
    """

def checked(name, value, convert, most): ...
def checked_bytes(name, value): ...
def configure(
    *,
    max_idle_bytes: int | None = None,
    idle_seconds: float | None = None,
    pressure_limit_bytes: int | None = None,
):
    """Change settings of the pool, all or none; None leaves a setting unchanged.

    Parameters
    ----------
    max_idle_bytes : int, optional
        Bound of the idle memory; initially 1 GiB. Larger frames are not cached.
    idle_seconds : float, optional
        How long memory may stay idle; initially 10.
    pressure_limit_bytes : int, optional
        RSS of this process above which nothing stays idle; 0, the initial value, means no limit.

    Raises
    ------
    ConfigError
        A value is invalid; the message names it.
    """

def set_pressure_limit(rss_bytes):
    """Keep nothing idle while the RSS of this process is above rss_bytes; 0 means no limit."""

def statistics():
    """Statistics of the pool, as a dict.

    ``in_use_*`` sum the requested sizes of live buffers. ``idle_*``, ``evicted_bytes`` (over the
    bound, or under pressure), ``trimmed_bytes`` (idle too long, or trimmed on request) and
    ``pinned_bytes`` (idle or not) sum whole slabs. ``hits_count`` and ``misses_count`` leave out
    small buffers.
    """

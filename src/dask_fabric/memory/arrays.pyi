"""NumPy arrays that own memory of the pool.

Code that looks for the owner of an array's memory (distributed's own does) follows ``base`` and
``obj`` and accepts the end of that chain only if it is bytes, bytearray or an array that owns its
memory. So the owner must be an array, and NumPy asks for its memory and frees it through a handler
of ours (NEP 49), which is in force during that one allocation only.

All of this happens under the GIL. What frees memory uses C structures alone: arrays die at any
time, also while the interpreter ends or an exception is on its way.
"""

from typing import Any

def new_array(nbytes: int, like: int = 0) -> Any:
    """An array that owns memory of the pool and hands it back when it dies.

    Parameters
    ----------
    nbytes : int
        Length in bytes, at least 1.
    like : int
        As for `pool.allocate`.

    Returns
    -------
    numpy.ndarray
        Of shape ``(nbytes,)`` and dtype ``uint8``, its content undefined.

    Raises
    ------
    ValueError
        The length is negative.
    MemoryError
        The system does not give that much; the message names the size.
    """

def pin(array: Any, pin_memory: Any) -> bool:
    """Pin the memory of an array once: the pool keeps it as it is for whoever comes next.

    Parameters
    ----------
    array : object
        What `new_array` gave; anything else is left alone.
    pin_memory : callable
        ``(address, nbytes)``; what it raises passes, and nothing is pinned.

    Returns
    -------
    bool
        Whether it is pinned now.
    """

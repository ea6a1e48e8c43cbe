"""NumPy arrays that own memory of the pool.

Code that looks for the owner of an array's memory (distributed's own does) follows ``base`` and
``obj``, and accepts the end of that chain only if it is bytes, bytearray or an array that owns its
memory. So the owner must be an array. NumPy allocates and frees its memory through our handler (NEP
49), which is set during that one allocation only. NumPy's own handler does what ours leaves to it:
it asks for huge pages for large arrays, and keeps small ones.

Everything here needs the GIL, and `resize` takes it: NumPy reads text without. The functions that
free memory use C structures only: an array may die at any time, also while the interpreter ends or
an exception propagates.
"""

from typing import Any

def share_results():
    """Have large arrays lie in the memory file that NumPy makes from now on in this context.

    The handler of NumPy's memory is a context variable: tasks and threads that are started with a
    copy of this context (`contextvars.copy_context`) have it too.
    """

def new_array(nbytes: int, like: int = 0) -> Any:
    """Make an array that owns memory of the pool, and returns it when it dies.

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
    """Pin the memory of an array; it stays pinned when the pool recycles it.

    Parameters
    ----------
    array : object
        From `new_array`; any other object is ignored.
    pin_memory : callable
        ``(address, nbytes)``; its exceptions propagate, and nothing is pinned then.

    Returns
    -------
    bool
        Whether it is pinned now.
    """

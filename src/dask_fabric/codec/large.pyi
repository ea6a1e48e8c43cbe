from typing import Final

from typing_extensions import Buffer

class Large(Buffer):
    """Bytes or text of a message; its pickle is one that every peer turns into the same type.

    It exports its part of the message itself: a memoryview that another one refers to, in a cycle
    that the collector frees, ends a process of Python 3.11 (python/cpython#77894).
    """

    nbytes: Final[int]

    def __reduce_ex__(self, protocol): ...

from typing import Final

from typing_extensions import Buffer

class Large(Buffer):
    """Bytes or text of a message; every peer unpickles it as bytes or str.

    It exports its part of the message itself. A memoryview of a memoryview, in a cycle that the
    collector frees, crashes Python 3.11 (python/cpython#77894).
    """

    nbytes: Final[int]

    def __reduce_ex__(self, protocol): ...

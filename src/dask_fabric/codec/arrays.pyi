from typing_extensions import Buffer

class ArrayFrame(Buffer):
    """The bytes of a contiguous array in the order of memory, whatever its dtype."""

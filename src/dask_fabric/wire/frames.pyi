"""Frames that one side offers and the other fetches, and the records about them."""

from typing import Any, Final

class Control:
    """A record that is not a message: an answer about offered frames, or a PATHS record."""

    kind: Final[int]
    sequence: Final[int]
    content: Final[bytes]

class FrameSet:
    """The frames on offer of one message; used by both sides."""

    sequence: Final[int]
    nbytes: Final[int]
    count: Final[int]
    frames: Final[list[Any]]

    def __init__(self, sequence): ...
    def views(self) -> list[tuple[int, int, bytes, memoryview | None]]:
        """Describe the frames, for paths and tests in Python.

        Returns
        -------
        list of (int, int, bytes, memoryview or None)
            Of each frame its index in the message, the number of its path, the descriptor (padded
            to 24 bytes) and its memory in this process, if it has any.
        """

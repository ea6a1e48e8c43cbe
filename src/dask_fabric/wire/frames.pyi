"""Frames that are offered by one side and fetched by the other, and the records about them."""

from typing import Any, Final

class Control:
    """A record that is no message: an answer about offered frames, or what paths there are."""

    kind: Final[int]
    sequence: Final[int]
    content: Final[bytes]

class FrameSet:
    """The frames of one message that its receiver is to fetch; both sides keep them so."""

    sequence: Final[int]
    nbytes: Final[int]
    count: Final[int]
    frames: Final[list[Any]]

    def __init__(self, sequence): ...
    def views(self) -> list[tuple[int, int, bytes, memoryview | None]]:
        """Give what there is, for paths and tests in Python.

        Returns
        -------
        list of (int, int, bytes, memoryview or None)
            Of each frame its index in the message, the number of its path, the descriptor (padded
            to 24 bytes) and its memory in this process, if it has any.
        """

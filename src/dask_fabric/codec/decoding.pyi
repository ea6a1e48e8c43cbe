from typing import Any

class Hook:
    """Calls msgpack's object hook, and records whether an exception came from the hook."""
    def __call__(self, item): ...

class Pieces:
    """Msgpack as a file whose reads let other threads run."""
    def read(self, nbytes: int): ...

class Decoding:
    """One header with a table of payloads, and its frames."""
    def __init__(self, dialect, unpack_options: dict[Any, Any], header, frames: list[Any]): ...
    def __call__(self, item: dict[Any, Any]):
        """Replace a reference by its payload: the object hook of msgpack."""

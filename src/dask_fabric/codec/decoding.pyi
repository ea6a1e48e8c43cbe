from typing import Any

class Hook:
    """Calls a hook of msgpack, and knows whether it was the hook that failed."""
    def __call__(self, item): ...

class Decoding:
    """One header with a table of payloads, and its frames."""
    def __init__(self, dialect, unpack_options: dict[Any, Any], header, frames: list[Any]): ...
    def __call__(self, item: dict[Any, Any]):
        """Put a payload in the place of a reference to it."""

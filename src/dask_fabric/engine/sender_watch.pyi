"""Watches the process of a peer while its frames are requested.

The stream may not show its end: another process may hold the same socket.
"""

import asyncio

class SenderWatch:
    """A descriptor of a process, watched by an event loop.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    """
    def __init__(self, loop: asyncio.AbstractEventLoop): ...

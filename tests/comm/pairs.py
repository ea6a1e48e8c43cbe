"""Two comms, end to end."""

import asyncio
import contextlib

import dask
from distributed.comm import connect, listen


@contextlib.asynccontextmanager
async def opened_pair(scheme, listener_config=None):
    """Give the connecting and the accepted end; the listener alone has *listener_config*."""
    accepted = asyncio.Queue()
    with dask.config.set(listener_config or {}):
        listener = await listen(f"{scheme}://127.0.0.1", accepted.put)
    a = await connect(listener.contact_address)
    b = await accepted.get()
    yield a, b
    a.abort()
    b.abort()
    listener.stop()

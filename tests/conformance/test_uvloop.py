"""The same comms in the other event loop that Dask users run."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize

uvloop = pytest.importorskip("uvloop")


async def converse(scheme, listen_args, connect_args):
    accepted = asyncio.Queue()
    listener = await listen(f"{scheme}://", accepted.put, **listen_args)
    port = listener.get_host_port()[1]
    data = np.arange(4 << 20)
    for host in ("127.0.0.1", "localhost"):
        a = await connect(f"{scheme}://{host}:{port}", **connect_args)
        b = await accepted.get()
        for message in ("small", {"x": to_serialize(data)}):
            await a.write(message)
            await b.write(await b.read())
            echoed = await a.read()
        np.testing.assert_array_equal(echoed["x"], data)
        reading = asyncio.ensure_future(b.read())
        await asyncio.sleep(0)
        await a.close()
        with pytest.raises(CommClosedError):
            await reading
        await b.close()
    listener.stop()
    with pytest.raises(OSError):
        await connect(f"{scheme}://127.0.0.1:{port}", timeout=0.1, **connect_args)


def test_conversations(scheme, listen_args, connect_args):
    uvloop.run(converse(scheme, listen_args, connect_args))
    gc.collect()  # what was left open would warn here

"""The interpreter ends with transfers in flight."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.clusters

BEFORE = """
import asyncio, sys, threading
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

async def transfer():
    accepted = asyncio.Queue()
    listener = await listen("SCHEME://127.0.0.1", accepted.put)
    one = await connect(listener.contact_address)
    other = await accepted.get()
    data = {"x": to_serialize(np.ones(200_000_000, "u1"))}
    for comm in (one, other):
        await comm.write(data)
    reading = [asyncio.ensure_future(comm.read()) for comm in (one, other)]
    await asyncio.sleep(0)
    return listener, one, other, reading
"""
ENDS = {
    "the program ends": "asyncio.run(transfer())",
    "exit in the loop": """
async def main():
    kept = await transfer()
    sys.exit()
asyncio.run(main())
""",
    "the loop is left open": """
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(transfer())
for reading in kept[3]:
    reading.cancel()
""",
    "a thread runs the loop": """
started = threading.Event()
async def main():
    kept = await transfer()
    started.set()
    await asyncio.Event().wait()
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
started.wait()
""",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
def test_exit_with_transfers_in_flight(scheme, end):
    done = subprocess.run(
        [sys.executable, "-c", BEFORE.replace("SCHEME", scheme) + ENDS[end]],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr

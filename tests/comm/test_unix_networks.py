"""Unix sockets of two network namespaces: each has names of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from ..conftest import NETWORKS

SERVE = """
import asyncio, sys
from distributed.comm import connect, listen
async def handle(comm):
    await comm.write(sys.argv[1])
async def main():
    async with listen("fabric://0.0.0.0:8786", handle):
        if len(sys.argv) > 2:
            comm = await connect(sys.argv[2])
            print(comm.control_stream, await comm.read())
            await comm.close()
        else:
            print("ready", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


@pytest.mark.netns
def test_not_across_network_namespaces(hosts):
    """With a listener of its own on that port, in the namespace of the client."""
    with contextlib.ExitStack() as stack:
        here, there = (["ip", "netns", "exec", name, sys.executable, "-c", SERVE] for name in hosts)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = stack.enter_context(subprocess.Popen([*there, "there"], **pipes))
        stack.callback(server.kill)
        assert server.stdout.readline() == "ready\n"
        for number, expected in ((2, "tcp there\n"), (1, "unix here\n")):
            output = subprocess.run(
                [*here, "here", f"fabric://{NETWORKS[0]}.{number}:8786"],
                check=True, capture_output=True, text=True, timeout=60,
            ).stdout  # fmt: skip
            assert output == expected

"""Unix sockets of two network namespaces: each has names of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

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
def test_not_across_network_namespaces():
    """With a listener of its own on that port, in the namespace of the client."""
    names = [f"unix{os.getpid()}{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:

        def ip(*arguments: str) -> None:
            subprocess.run(["ip", *arguments], check=True, capture_output=True)

        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("-n", names[0], "link", "add", "eth0", "type", "veth",
               "peer", "name", "eth0", "netns", names[1])  # fmt: skip
            for number, name in enumerate(names, 1):
                ip("-n", name, "address", "add", f"10.79.0.{number}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as exc:
            pytest.skip(f"no network namespaces here: {exc}")
        here, there = (["ip", "netns", "exec", name, sys.executable, "-c", SERVE] for name in names)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = stack.enter_context(subprocess.Popen([*there, "there"], **pipes))
        stack.callback(server.kill)
        assert server.stdout.readline() == "ready\n"
        for address, expected in (("10.79.0.2", "tcp there\n"), ("10.79.0.1", "unix here\n")):
            output = subprocess.run(
                [*here, "here", f"fabric://{address}:8786"],
                check=True, capture_output=True, text=True, timeout=60,
            ).stdout  # fmt: skip
            assert output == expected

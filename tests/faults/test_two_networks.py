"""Two networks between two hosts: lanes use both, and one of them goes away."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from benchmarks.networks import ip

from ..conftest import NETWORKS

FRAME_COUNT = 20


@pytest.mark.netns
@pytest.mark.parametrize("scheme", ["fabric+tcp", "fabric+tls"])
async def test_lanes_use_both_and_outlive_one(hosts, start_peer, temporary_security, scheme):
    here, there = (("ip", "netns", "exec", name) for name in hosts)
    shared = {
        "config": {"fabric.lanes.count": 2, "fabric.lanes.interfaces": ["eth0", "eth1"]},
        "message_bytes": 4_000_000,
        "security": temporary_security if scheme == "fabric+tls" else None,
    }
    one = start_peer("echo", f"{scheme}://{NETWORKS[0]}.1", listens=True, prefix=here, **shared)
    other = start_peer("exchange_checked", await one.line(), prefix=there, **shared)
    assert "lanes" in await other.line()

    def sent(device: str) -> int:
        file = f"/sys/class/net/{device}/statistics/tx_bytes"
        return int(subprocess.check_output([*there, "cat", file]))

    async def frames() -> None:
        for _ in range(FRAME_COUNT):
            assert await other.line() == "right"

    while sent("eth1") < 20_000_000:
        await asyncio.sleep(0.05)
    await frames()
    assert sent("eth0") > 10_000_000
    ip("-n", hosts[0], "link", "set", "eth1", "down")
    await frames()

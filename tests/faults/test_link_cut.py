"""The network between two hosts goes away, during a transfer or while nothing is sent."""

from __future__ import annotations

import asyncio

import pytest

from ..conftest import NETWORKS, TLS_SCHEMES, ip, schemes

NETWORK = NETWORKS[1]
# With ten probes, as Dask has them, it could not be less than 11 s.
PROBE_COUNT, TIMEOUT = 2, "3s"


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.parametrize("role", ["exchange", "be_idle", "write_on"])
async def test_both_ends_learn_of_it(hosts, temporary_security, start_peer, role):
    here, there = (("ip", "netns", "exec", name) for name in hosts)

    async def connected(scheme: str) -> list:
        shared = {
            "security": temporary_security if scheme in TLS_SCHEMES else None,
            "config": {"distributed.comm.timeouts.tcp": TIMEOUT},
            "probe_count": PROBE_COUNT,
            "message_bytes": 20_000_000,
        }
        address = f"{scheme}://{NETWORK}.1"
        one = start_peer("answer", address, listens=True, prefix=here, **shared)
        other = start_peer(role, await one.line(), prefix=there, **shared)
        assert await other.line() in ("answered", "idle", "written")
        return [one, other]

    # All schemes at once: what passes here is time.
    pairs = await asyncio.gather(*map(connected, schemes()))
    ip("-n", hosts[0], "link", "set", "eth1", "down")
    ends = [last_line(peer) for pair in pairs for peer in pair]
    assert set(await asyncio.gather(*ends)) == {"CommClosedError"}


async def last_line(peer) -> str:
    while (line := await peer.line()) in ("answered", "written"):
        pass
    return line

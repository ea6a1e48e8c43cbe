"""The network between two hosts goes away during a transfer."""

from __future__ import annotations

import asyncio

import pytest

from ..conftest import NETWORKS, TLS_SCHEMES, ip, schemes

NETWORK = NETWORKS[1]
# The least that `distributed.comm.timeouts.tcp` may be.
CONFIG = {"distributed.comm.timeouts.tcp": "11s"}


@pytest.mark.netns
async def test_both_ends_learn_of_it(hosts, temporary_security, start_peer):
    here, there = (("ip", "netns", "exec", name) for name in hosts)
    # All schemes at once: what passes here is time.
    peers = []
    for scheme in schemes():
        security = temporary_security if scheme in TLS_SCHEMES else None
        shared = dict(security=security, config=CONFIG, message_bytes=20_000_000)
        address = f"{scheme}://{NETWORK}.1"
        one = start_peer("answer", address, listens=True, prefix=here, **shared)
        other = start_peer("exchange", await one.line(), prefix=there, **shared)
        assert await other.line() == "answered"
        peers += [one, other]
    ip("-n", hosts[0], "link", "set", "eth1", "down")
    assert set(await asyncio.gather(*map(last_line, peers))) == {"CommClosedError"}


async def last_line(peer) -> str:
    while (line := await peer.line()) == "answered":
        pass
    return line

"""The network between two hosts goes away, for ever or for seconds."""

from __future__ import annotations

import asyncio

import pytest
from benchmarks.networks import ip

from ..conftest import NETWORKS, TLS_SCHEMES, ofi_settings, schemes, ucx_params

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


AWAY_SECONDS = 3
FRAME_COUNT = 100
# The path, the scheme, and the settings by which the frames between two namespaces go by it.
WAYS = [
    ("stream", "fabric+tcp", {"fabric.lanes.count": 1}),
    ("stream", "fabric+tls", {"fabric.lanes.count": 1}),
    ("lanes", "fabric+tcp", {"fabric.lanes.count": 4}),
    ("lanes", "fabric+tls", {"fabric.lanes.count": 4}),
]


def ways() -> list:
    """Give those of this host."""
    found = [*WAYS, ("ofi", "fabric+ofi", {"fabric.lanes.count": 1, **ofi_settings()})]
    if ucx_params():
        # Not by shared memory, which the two namespaces have in common.
        options = {"TLS": "tcp,self", "WARN_UNUSED_ENV_VARS": "n"}
        found.append(("ucx", "fabric+ucx", {"fabric.ucx.options": options}))
    return found


@pytest.mark.netns
@pytest.mark.slow
async def test_a_link_that_is_away_for_seconds_costs_nothing_but_time(
    hosts, temporary_security, start_peer
):
    here, there = (("ip", "netns", "exec", name) for name in hosts)

    async def connected(path: str, scheme: str, config: dict):
        shared = {
            "security": temporary_security if scheme in TLS_SCHEMES else None,
            "config": config,
            "message_bytes": 4_000_000,
        }
        one = start_peer("echo", f"{scheme}://{NETWORK}.1", listens=True, prefix=here, **shared)
        other = start_peer("exchange_checked", await one.line(), prefix=there, **shared)
        used = (await other.line()).split()
        assert used[0] == "by" and path in used, (path, scheme, used)
        return other

    peers = await asyncio.gather(*(connected(*way) for way in ways()))
    for device in ("eth0", "eth1"):
        ip("-n", hosts[0], "link", "set", device, "down")
    await asyncio.sleep(AWAY_SECONDS)  # what passes here is time
    for device in ("eth0", "eth1"):
        ip("-n", hosts[0], "link", "set", device, "up")

    async def all_right(peer) -> None:
        for _ in range(FRAME_COUNT):
            assert await peer.line() == "right"

    await asyncio.gather(*map(all_right, peers))


async def last_line(peer) -> str:
    while (line := await peer.line()) in ("answered", "written"):
        pass
    return line

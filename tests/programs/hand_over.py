"""Hand arrays over between three processes at random, and compare all of them bit by bit.

    python tests/programs/hand_over.py --count 10000 --nbytes 10000000 --seed 7

Arrays are made, handed over, changed and dropped in all processes. What each must contain is known
from its first content and the changes since. At the end, all arrays are dropped: the processes must
have as many descriptors and mappings as at the beginning, and no more memory than the pool keeps.
Run from the root of the repository, with ``PYTHONPATH=.``.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import random
import subprocess
import sys
import zlib
from dataclasses import dataclass, field

import dask
from distributed.comm import connect
from tests.paths.shm_peer import SETTINGS, pattern

PEER_COUNT = 3
KEPT_COUNT = 6  # arrays of a process
SEED_COUNT = 8
SLACK_BYTES = 64 << 20
PATIENCE_SECONDS = 60


@dataclass
class Content:
    seed: int
    writes: dict[int, int] = field(default_factory=dict)

    def digest(self, nbytes: int) -> int:
        data = pattern(self.seed, nbytes).copy()
        for index, value in self.writes.items():
            data[index] = value
        return zlib.crc32(data)


class Peer:
    def __init__(self, process, comm) -> None:
        self.process, self.comm, self.address = process, comm, comm.peer_address
        self.kept: dict[str, Content] = {}

    async def __call__(self, op: str, **arguments) -> dict:
        await self.comm.write({"op": op, **arguments})
        return await asyncio.wait_for(self.comm.read(), PATIENCE_SECONDS)

    async def check(self, name: str, nbytes: int) -> None:
        digest = (await self("digest", name=name))["digest"]
        if digest != self.kept[name].digest(nbytes):
            raise AssertionError(f"array {name} of {self.address} is not what it must be")


async def start(stack: contextlib.AsyncExitStack) -> Peer:
    command = [sys.executable, "-m", "tests.paths.shm_peer", json.dumps({"fabric.shm.max": "1 GB"})]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    stack.callback(process.communicate)
    stack.callback(process.kill)
    comm = await connect(process.stdout.readline().strip())
    stack.push_async_callback(comm.close)
    return Peer(process, comm)


async def step(
    rng: random.Random, peers: list[Peer], number: int, nbytes: int, paths: collections.Counter
) -> None:
    """Do one thing; a hand-over is counted under its path."""
    peer, other = rng.sample(peers, 2)
    names = list(peer.kept)
    action = rng.random()
    if not names or (action < 0.1 and len(names) < KEPT_COUNT):
        name, seed = f"a{number}", rng.randrange(SEED_COUNT)
        await peer("paint", name=name, nbytes=nbytes, seed=seed, in_file=rng.random() < 0.8)
        peer.kept[name] = Content(seed)
    elif action < 0.6:
        await hand_over(rng.choice(names), peer, other, paths, f"a{number}")
    elif action < 0.8:
        name, index, value = rng.choice(names), rng.randrange(nbytes), rng.randrange(256)
        await peer("write", name=name, index=index, value=value)
        peer.kept[name].writes[index] = value
    elif action < 0.9:
        await peer.check(rng.choice(names), nbytes)
    else:
        await drop(peer, rng.choice(names))
    while len(other.kept) > KEPT_COUNT:
        await drop(other, rng.choice(list(other.kept)))


async def hand_over(
    name: str, source: Peer, target: Peer, paths: collections.Counter, new_name: str
) -> None:
    outcome = await target("fetch", name=name, address=source.address, new_name=new_name)
    content = source.kept[name]
    target.kept[new_name] = Content(content.seed, dict(content.writes))
    paths[" ".join(outcome["path"])] += 1


async def drop(peer: Peer, name: str) -> None:
    await peer("drop", name=name)
    del peer.kept[name]


async def at_rest(peer: Peer, before: dict) -> dict:
    """Wait until a process has no more than before; give what it has if that takes too long."""
    for _ in range(100):
        usage = await peer("usage")
        if (
            usage["fds"] <= before["fds"]
            and usage["file_maps"] <= before["file_maps"]
            and usage["pss_bytes"] <= before["pss_bytes"] + SLACK_BYTES
        ):
            return {}
        await asyncio.sleep(0.1)
    return usage


async def run(count: int, nbytes: int, seed: int, is_quiet: bool = False) -> collections.Counter:
    """Hand over `count` arrays of `nbytes`; give how many went by which path.

    Raises
    ------
    AssertionError
        An array was wrong, or something is left.
    """
    rng = random.Random(seed)
    paths: collections.Counter = collections.Counter()
    with dask.config.set(SETTINGS):
        async with contextlib.AsyncExitStack() as stack:
            peers = [await start(stack) for _ in range(PEER_COUNT)]
            await warm_up(peers, nbytes)
            before = [await peer("usage") for peer in peers]
            number = 0
            while paths.total() < count:
                number += 1
                await step(rng, peers, number, nbytes, paths)
                if not is_quiet and number % 1000 == 0:
                    print(f"{number} steps, {paths.total()} hand-overs", flush=True)
            for peer in peers:
                for name in list(peer.kept):
                    await peer.check(name, nbytes)
            for peer in peers:
                for name in list(peer.kept):
                    await drop(peer, name)
            left = [await at_rest(*of) for of in zip(peers, before, strict=True)]
            if any(left):
                raise AssertionError(f"left: {left}, at the beginning: {before}")
    return paths


async def warm_up(peers: list[Peer], nbytes: int) -> None:
    """Have each process know all files, its own too, and its pool as full as it gets."""
    for peer in peers:
        for index in range(KEPT_COUNT):
            await peer("paint", name=f"w{index}", nbytes=nbytes, seed=index, in_file=True)
    for source, target in itertools.permutations(peers, 2):
        path = None
        while path != ("shm",):
            path = (await target("fetch", name="w0", address=source.address, new_name="f"))["path"]
            await source("fetch", name="f", address=target.address, new_name="f")
            await source("drop", name="f")
            await target("drop", name="f")
    for peer in peers:
        for index in range(KEPT_COUNT):
            await peer("drop", name=f"w{index}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="hand-overs")
    parser.add_argument("--nbytes", type=int, default=10_000_000, help="of an array")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    paths = asyncio.run(run(options.count, options.nbytes, options.seed))
    print(", ".join(f"{path}: {count}" for path, count in paths.most_common()))


if __name__ == "__main__":
    main()

"""The low-water mark of sockets, and the kernels where it is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dask_fabric.paths.stream import is_low_water_sound

RECEIVE = """
import asyncio, os, sys
import numpy as np
release = sys.argv[1] or os.uname().release
uname = os.uname_result(("Linux", "host", release, "#1", "machine"))
os.uname = lambda: uname
from conftest import fd_of, low_water_bytes, new_channel, tcp_pair

async def main():
    near, far = tcp_pair()
    near, far = new_channel(near, False), new_channel(far, True)
    await asyncio.gather(near.open(), far.open())
    pending, fd = far.receive(), fd_of(far)
    near.send(b"h", [np.zeros(50_000_000, "u1")])
    while not far.statistics()["receive_jobs"]:
        await asyncio.sleep(0)
    during = low_water_bytes(fd)
    await pending
    print(during > 1, low_water_bytes(fd))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("release", "sound"),
    [
        ("4.18.0-553.el8_10.x86_64", False),
        ("5.7.19", False),
        ("5.8.0-63-generic", False),
        ("5.11.22", False),
        ("5.12.0", True),
        ("5.14.0-503.el9.x86_64", True),
        ("6.1.0-18-amd64", True),
        ("10.0", True),
        ("5", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_kernels_where_the_low_water_mark_is_sound(release, sound):
    assert is_low_water_sound(release) is sound


@pytest.mark.parametrize("release", ["5.7.0", ""])
def test_the_low_water_mark_is_raised_for_a_large_receive_where_it_is_sound(release):
    done = subprocess.run(
        [sys.executable, "-c", RECEIVE, release],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1] / "engine",
    )
    sound = is_low_water_sound(release or os.uname().release)
    assert done.stdout.split() == [str(sound), "1"], done.stderr

"""Hosts made of network namespaces, and the shapes of the links between them.

For the tests and for `benchmarks/lanes.py`; needs root and iproute2. Where a namespace cannot be
made, `OSError` or `subprocess.CalledProcessError` tells.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence

FLOWS = 4096  # classes for flows of their own; two flows share one by chance


def ip(*arguments: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def tc(name: str, *arguments: str, batch: str | None = None) -> None:
    """Run tc(8) in a namespace; *batch* is its input."""
    subprocess.run(
        ["ip", "netns", "exec", name, "tc", *arguments],
        check=True, capture_output=True, text=True, input=batch,
    )  # fmt: skip


@contextlib.contextmanager
def namespaces(count: int, prefix: str = "fabric") -> Iterator[list[str]]:
    """Make hosts without a network, and give their names; they end with the block."""
    names = [f"{prefix}{os.getpid()}{chr(ord('a') + number)}" for number in range(count)]
    with contextlib.ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def connect(one: str, other: str, device: str, network: str = "") -> None:
    """Join two hosts by a link, a device of this name in both.

    They are ``.1`` and ``.2`` of a network such as ``10.79.0``; without one they have no address.
    """
    ip("-n", one, "link", "add", device, "type", "veth", "peer", "name", device, "netns", other)
    for number, name in enumerate((one, other), 1):
        if network:
            ip("-n", name, "address", "add", f"{network}.{number}/24", "dev", device)
        ip("-n", name, "link", "set", device, "up")


def mesh(names: Sequence[str], network: str) -> dict[tuple[str, str], str]:
    """Join each two hosts by a link of their own; give its device by both names, either way.

    The hosts are ``.1``, ``.2``, ... of the network.
    """
    for number, name in enumerate(names, 1):
        ip("-n", name, "address", "add", f"{network}.{number}/32", "dev", "lo")
    devices = {}
    for i, j in itertools.combinations(range(len(names)), 2):
        device = f"link{i}x{j}"
        connect(names[i], names[j], device)
        for here, there in ((i, j), (j, i)):
            ip("-n", names[here], "route", "add", f"{network}.{there + 1}/32",
               "dev", device, "src", f"{network}.{here + 1}")  # fmt: skip
            devices[names[here], names[there]] = device
    return devices


def cap_link(name: str, device: str, mbit: int) -> None:
    """Limit what a host sends by a device."""
    tc(name, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{mbit}mbit",
       "burst", "256kb", "latency", "100ms")  # fmt: skip


def cap_flows(name: str, device: str, mbit: int) -> None:
    """Limit each flow of TCP that a host sends by a device, as clouds do.

    HTB has a class for each; classic BPF chooses it by the two ports.
    """
    classes = "".join(
        f"class add dev {device} parent 1: classid 1:{number:x} htb rate {mbit}mbit "
        f"ceil {mbit}mbit burst 128k cburst 128k quantum 65536\n"
        for number in range(10, FLOWS + 10)
    )
    at = 0xFFF00000  # the network header
    # 1:(10 + (source ^ destination) % FLOWS) for TCP over IPv4, else no class
    program = (
        f"13,48 0 0 {at},84 0 0 240,21 0 9 64,48 0 0 {at + 9},21 0 7 6,40 0 0 {at + 20},7 0 0 0,"
        f"40 0 0 {at + 22},172 0 0 0,84 0 0 {FLOWS - 1},4 0 0 {65536 + 10},22 0 0 0,6 0 0 0,"
    )
    tc(name, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "0")
    tc(name, "-batch", "-", batch=classes)
    tc(name, "filter", "add", "dev", device, "parent", "1:", "protocol", "ip", "prio", "10", "bpf",
       "bytecode", program)  # fmt: skip

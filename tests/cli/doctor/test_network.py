"""Network interfaces."""

from __future__ import annotations

import socket
from types import SimpleNamespace

from dask_fabric.cli.doctor.network import inspect_interfaces


def address(text: str, family: int = socket.AF_INET) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=text)


def state(up: bool = True, speed: int = 0, mtu: int = 1500) -> SimpleNamespace:
    return SimpleNamespace(isup=up, speed=speed, mtu=mtu)


def test_interfaces(tree):
    card = tree.pci("pci0000:00", "0000:00:05.0")
    tree.link("sys/class/net/eth0/device", f"/{card}")
    for name, kind in {"lo": 772, "eth0": 1, "ib0": 32, "docker0": 1}.items():
        tree.write(f"sys/class/net/{name}/type", kind)
    found = inspect_interfaces(
        tree.root,
        {
            "lo": [address("127.0.0.1")],
            "eth0": [address("10.0.0.5"), address("fe80::1%eth0", socket.AF_INET6)],
            "ib0": [address("10.1.0.5"), address("80:00:02", socket.AF_PACKET)],
        },
        {
            "docker0": state(up=False),
            "lo": state(mtu=65536),
            "eth0": state(speed=10000),
            "ib0": state(speed=400000, mtu=4092),
            "odd": state(speed=2**32 - 1),
        },
        "10.0.0.5",
    )
    assert [(one.name, one.kind, one.up, one.speed_mbit) for one in found] == [
        ("lo", "loopback", True, None),
        ("eth0", "network card", True, 10000),
        ("ib0", "InfiniBand", True, 400000),
        ("odd", "virtual", True, None),
        ("docker0", "virtual", False, None),
    ]
    assert [one.name for one in found if one.advertised] == ["eth0"]
    assert found[1].addresses == ("10.0.0.5", "fe80::1%eth0")
    assert found[1].place.address == "0000:00:05.0"
    assert found[2].addresses == ("10.1.0.5",)


def test_interfaces_of_this_host():
    loopback = next(one for one in inspect_interfaces() if "127.0.0.1" in one.addresses)
    assert loopback.kind == "loopback" and loopback.up

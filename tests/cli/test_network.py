"""Interfaces and RDMA devices."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest

from dask_fabric.cli.network import RdmaPort, inspect_interfaces, inspect_rdma


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


def test_rdma_devices(tree):
    folder = tree.pci("pci0000:15", "0000:17:00.0")
    tree.write(f"{folder}/net/ib0/mtu")
    tree.rdma("mlx5_0", folder)
    tree.write("sys/class/infiniband/mlx5_0/fw_ver", "28.39.1002")
    tree.write("dev/infiniband/uverbs0")
    (device,) = inspect_rdma(tree.root)
    assert device.active and device.may_use_verbs
    assert (device.name, device.firmware, device.interfaces) == ("mlx5_0", "28.39.1002", ("ib0",))
    assert device.verbs == "/dev/infiniband/uverbs0"
    assert device.ports == (RdmaPort(1, "ACTIVE", "LinkUp", "400 Gb/sec (4X NDR)", "InfiniBand"),)
    assert device.place.address == "0000:17:00.0"


def test_a_device_without_a_link_and_without_its_special_file(tree):
    tree.rdma("mlx5_0", tree.pci("pci0000:15", "0000:17:00.0"), state="1: DOWN")
    (device,) = inspect_rdma(tree.root)
    assert not device.active and not device.may_use_verbs
    assert device.ports[0].state == "DOWN"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_special_file_that_this_user_may_not_open(tree):
    tree.rdma("mlx5_0", tree.pci("pci0000:15", "0000:17:00.0"))
    tree.write("dev/infiniband/uverbs0").chmod(0)
    assert not inspect_rdma(tree.root)[0].may_use_verbs


def test_a_device_that_tells_nothing(tree):
    tree.write("sys/class/infiniband/siw0/node_type")
    tree.write("sys/class/infiniband/siw0/ports/1/odd")
    (device,) = inspect_rdma(tree.root)
    assert device.ports == (RdmaPort(1, None, None, None, None),)
    assert not device.active and device.place is None and device.firmware is None


def test_no_rdma_devices(tmp_path):
    assert inspect_rdma(tmp_path) == ()

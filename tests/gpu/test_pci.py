"""Places on the bus, and how near two devices are."""

from __future__ import annotations

import pytest

from dask_fabric.gpu.pci import Place, nearness, place_of

ROOT, SWITCH, OTHER = "pci0000:15", "0000:15:01.0", "0000:15:02.0"


def test_place_of_a_device(tree):
    folder = tree.pci(
        ROOT,
        SWITCH,
        "0000:17:00.0",
        numa_node=1,
        current_link_speed="16.0 GT/s PCIe",
        current_link_width=8,
        max_link_speed="32.0 GT/s PCIe",
        max_link_width=16,
    )
    expected = Place("0000:17:00.0", (ROOT, SWITCH), 1, "16.0 GT/s x8", "32.0 GT/s x16")
    assert place_of(tree.root / "sys/bus/pci/devices/0000:17:00.0", tree.root) == expected
    # The device of a virtual card is a child of that on the bus.
    tree.write(f"{folder}/virtio3/uevent")
    tree.link("sys/class/net/eth0/device", f"/{folder}/virtio3")
    assert place_of(tree.root / "sys/class/net/eth0/device", tree.root) == expected


def test_little_may_be_known_of_a_place(tree):
    tree.pci(ROOT, "0000:15:00.0", numa_node=-1, current_link_speed="Unknown", max_link_width=0)
    place = place_of(tree.root / "sys/bus/pci/devices/0000:15:00.0", tree.root)
    assert place == Place("0000:15:00.0", (ROOT,), None, None, None)


def test_devices_that_are_not_on_the_bus(tree):
    tree.write("sys/devices/vmbus/1/uevent")
    tree.link("sys/class/net/eth0/device", "/sys/devices/vmbus/1")
    tree.link("sys/class/net/eth1/device", "/sys/devices/pci0000:00/0000:00:01.0")  # dangling
    for name in ("eth0", "eth1", "eth2"):
        assert place_of(tree.root / f"sys/class/net/{name}/device", tree.root) is None
    assert place_of(tree.root.parent, tree.root) is None


def place(*bridges: str, node: int | None = None) -> Place:
    return Place("0000:99:00.0", bridges, node, None, None)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (place(ROOT, SWITCH), place(ROOT, SWITCH), "same PCIe switch"),
        (place(ROOT, SWITCH, "a"), place(ROOT, SWITCH, "b"), "same PCIe switch"),
        (place(ROOT, SWITCH), place(ROOT, OTHER), "same PCIe root"),
        (place(ROOT), place(ROOT), "same PCIe root"),
        (place("pci0000:a0", node=0), place(ROOT, node=0), "same NUMA node"),
        (place("pci0000:a0", node=0), place(ROOT, node=1), "other NUMA node"),
        (place("pci0000:a0"), place(ROOT, node=1), "unknown"),
        (None, place(ROOT), "unknown"),
    ],
)
def test_nearness(one, other, expected):
    assert nearness(one, other) == nearness(other, one) == expected

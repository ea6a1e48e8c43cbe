"""GPUs as the driver and the bus report them, and the network devices near them."""

from __future__ import annotations

import pytest

from dask_fabric.gpu.pci import place_of
from dask_fabric.gpu.survey import inspect_gpus, inspect_modules

TABLE = """\
0, NVIDIA H200, GPU-aaa, 00000000:17:00.0, 143771, 570.86.15
1, NVIDIA H200, GPU-bbb, 00000000:9A:00.0, [N/A], 570.86.15
a line that is none
"""
NVIDIA = {"vendor": "0x10de", "class": "0x030200", "device": "0x2335"}


def nothing() -> str:
    return ""


@pytest.fixture
def devices(tree):
    """Two GPUs of NVIDIA with a network card each, beside one that is far from both."""
    tree.pci("pci0000:15", "0000:15:01.0", "0000:17:00.0", numa_node=0, **NVIDIA)
    tree.pci("pci0000:98", "0000:98:01.0", "0000:9a:00.0", numa_node=1, **NVIDIA)
    cards = {
        "mlx5_0": tree.pci("pci0000:15", "0000:15:01.0", "0000:18:00.0", numa_node=0),
        "mlx5_1": tree.pci("pci0000:98", "0000:98:05.0", "0000:9b:00.0", numa_node=1),
        "mlx5_2": tree.pci("pci0000:40", "0000:40:01.0", "0000:41:00.0", numa_node=0),
    }
    return [(name, place_of(tree.root / folder, tree.root)) for name, folder in cards.items()]


def test_gpus_of_nvidia_smi(tree, devices):
    one, two = inspect_gpus(tree.root, devices, lambda: TABLE)
    assert (one.name, one.uuid, one.driver) == ("NVIDIA H200", "GPU-aaa", "570.86.15")
    assert (one.memory_bytes, two.memory_bytes) == (143771 << 20, None)
    assert one.usable and two.usable
    assert (one.nearest, one.nearest_by) == (("mlx5_0",), "same PCIe switch")
    assert (two.nearest, two.nearest_by) == (("mlx5_1",), "same PCIe root")


def test_gpus_of_the_driver_without_nvidia_smi(tree, devices):
    tree.write(
        "proc/driver/nvidia/gpus/0000:17:00.0/information",
        "Model: \t\t NVIDIA H200\nIRQ:   \t\t 97\nGPU UUID: \t GPU-aaa",
    )
    tree.write(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build",
    )
    one, two = inspect_gpus(tree.root, devices, nothing)
    assert (one.name, one.uuid, one.driver) == ("NVIDIA H200", "GPU-aaa", "570.86.15")
    assert one.usable and one.nearest == ("mlx5_0",)
    assert not two.usable  # the driver does not know it: it belongs to another container


def test_gpus_that_only_the_bus_knows(tree):
    tree.pci("pci0000:00", "0000:00:01.0", **{**NVIDIA, "class": "0x030000"})
    amd = tree.pci("pci0000:00", "0000:00:02.0", **{**NVIDIA, "vendor": "0x1002"})
    tree.pci("pci0000:00", "0000:00:03.0", **{**NVIDIA, "class": "0x040300"})  # its audio
    tree.pci("pci0000:00", "0000:00:04.0", **{**NVIDIA, "vendor": "0x8086"})
    tree.write("sys/bus/pci/drivers/amdgpu/module")
    tree.link(f"{amd}/driver", "/sys/bus/pci/drivers/amdgpu")
    found = inspect_gpus(tree.root, (), nothing)
    assert [(gpu.name, gpu.usable, gpu.driver) for gpu in found] == [
        ("NVIDIA 0x2335", False, None),
        ("AMD 0x2335", True, "amdgpu"),
    ]
    assert found[0].nearest == () and found[0].nearest_by == "unknown"


def test_no_gpus(tmp_path):
    assert inspect_gpus(tmp_path, (), nothing) == ()
    assert inspect_modules(tmp_path) == ()


def test_modules_for_network_cards(tree):
    tree.write("sys/module/nvidia_peermem/refcnt", 0)
    assert inspect_modules(tree.root) == ("nvidia_peermem",)

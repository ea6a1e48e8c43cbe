"""RDMA devices."""

from __future__ import annotations

import os

import pytest

from dask_fabric.gpu.rdma import RdmaPort, inspect_rdma


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

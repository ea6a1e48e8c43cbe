"""The environment of the worker of each GPU."""

from __future__ import annotations

import sys

import dask.config
import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.gpu.seats import find_seats

from .conftest import CPUS, uuid

NVIDIA = {"vendor": "0x10de", "class": "0x030200", "device": "0x2335"}
BUSES = ("00000000:17:00.0", "00000000:9A:00.0")


@pytest.fixture
def host(tree, gpus):
    """Two GPUs with a network card near each, and one that is down."""
    gpus(*({"bus": bus, "cpus": [*CPUS, 4000]} for bus in BUSES))
    tree.pci("pci0000:15", "0000:15:01.0", "0000:17:00.0", numa_node=0, **NVIDIA)
    tree.pci("pci0000:98", "0000:98:01.0", "0000:9a:00.0", numa_node=1, **NVIDIA)
    places = [("pci0000:15", "0000:15:01.0"), ("pci0000:98", "0000:98:01.0")]
    for number, bridges in enumerate(places):
        folder = tree.pci(*bridges, f"0000:{number}f:00.0", numa_node=number)
        tree.rdma(f"mlx5_{number}", folder, number)
        tree.write(f"dev/infiniband/uverbs{number}")
    tree.rdma("mlx5_9", tree.pci(*places[0], "0000:19:00.0", numa_node=0), 9, state="1: DOWN")
    tree.write("dev/infiniband/uverbs9")
    return tree


def environments(seats) -> list[dict[str, str]]:
    return [dict(seat.environment) for seat in seats]


def test_a_seat_for_each_gpu(host):
    seats, reason = find_seats(environment={}, root=host.root)
    assert reason == ""
    assert environments(seats) == [
        {
            "CUDA_VISIBLE_DEVICES": "0,1",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "UCX_NET_DEVICES": "mlx5_0:1",
        },
        {
            "CUDA_VISIBLE_DEVICES": "1,0",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "UCX_NET_DEVICES": "mlx5_1:1",
        },
    ]
    assert [seat.nics for seat in seats] == [("mlx5_0",), ("mlx5_1",)]
    assert seats[0].cores == tuple(CPUS)  # without those that this process may not use
    assert str(seats[1]) == f"GPU 1 (NVIDIA Stand-in), {len(CPUS)} CPUs, mlx5_1"


@pytest.mark.parametrize(
    ("given", "named", "expected"),
    [
        ("1,0", None, ["1,0", "0,1"]),
        ("1", None, ["1"]),
        (f"{uuid(1)},GPU-00000000", None, [f"{uuid(1)},{uuid(0)}", f"{uuid(0)},{uuid(1)}"]),
        ("1", "0", ["0"]),
        ("", [1, 0], ["1,0", "0,1"]),
    ],
)
def test_what_is_chosen_already(host, given, named, expected):
    seats, _ = find_seats(named, {"CUDA_VISIBLE_DEVICES": given}, host.root)
    found = [one["CUDA_VISIBLE_DEVICES"] for one in environments(seats)]
    assert found == expected


def test_instances_of_a_divided_gpu(gpus, tmp_path):
    names = [uuid(7, "MIG"), uuid(8, "MIG")]
    gpus({"mig": names})
    seats, _ = find_seats(environment={}, root=tmp_path)
    found = [one["CUDA_VISIBLE_DEVICES"] for one in environments(seats)]
    assert found == [",".join(names), ",".join(reversed(names))]


@pytest.mark.parametrize("value", ["", "-1"])
def test_none_is_named(host, value):
    seats, reason = find_seats(environment={"CUDA_VISIBLE_DEVICES": value}, root=host.root)
    assert seats == () and reason == "CUDA_VISIBLE_DEVICES names none"


def test_a_host_without_gpus(gpus, tmp_path):
    seats, reason = find_seats(environment={}, root=tmp_path)
    assert seats == () and "NVML Shared Library Not Found" in reason
    gpus()
    assert find_seats(environment={}, root=tmp_path) == ((), "NVIDIA's driver reports none")


def test_gpus_that_nobody_can_ask_about(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_seats(environment={}, root=tree.root)[0] == ()
    with pytest.raises(UnavailableError, match="pip install nvidia-ml-py"):
        find_seats(environment={"CUDA_VISIBLE_DEVICES": "0"}, root=tree.root)
    tree.write("proc/driver/nvidia/gpus/0000:17:00.0/information", "GPU UUID: GPU-aaa")
    with pytest.raises(UnavailableError, match="or set CUDA_VISIBLE_DEVICES= "):
        find_seats(environment={}, root=tree.root)


class TestCards:
    def test_the_users_choice_stays(self, host):
        chosen = {"UCX_NET_DEVICES": "mlx5_1:1"}
        seats, _ = find_seats(environment=chosen, root=host.root)
        assert not any("UCX_NET_DEVICES" in one for one in environments(seats))
        with dask.config.set({"fabric.ucx.options": {"NET_DEVICES": "all"}}):
            seats, _ = find_seats(environment={}, root=host.root)
        assert not any("UCX_NET_DEVICES" in one for one in environments(seats))

    def test_where_all_are_as_near_nothing_is_said(self, tree, gpus):
        gpus({"bus": BUSES[0]})
        tree.pci("pci0000:15", "0000:15:01.0", "0000:17:00.0", **NVIDIA)
        for number in range(2):
            folder = tree.pci("pci0000:15", "0000:15:01.0", f"0000:1{number}:00.0")
            tree.rdma(f"mlx5_{number}", folder, number)
            tree.write(f"dev/infiniband/uverbs{number}")
        ((seat,), _) = find_seats(environment={}, root=tree.root)
        assert seat.nics == () and "UCX_NET_DEVICES" not in dict(seat.environment)

    def test_a_card_of_another_node_is_not_near(self, tree, gpus):
        gpus({"bus": BUSES[0]})
        tree.pci("pci0000:15", "0000:15:01.0", "0000:17:00.0", numa_node=0, **NVIDIA)
        for number, node in enumerate((1, -1)):  # of the second nobody knows
            folder = tree.pci("pci0000:98", f"0000:9{number}:00.0", numa_node=node)
            tree.rdma(f"mlx5_{number}", folder, number)
            tree.write(f"dev/infiniband/uverbs{number}")
        ((seat,), _) = find_seats(environment={}, root=tree.root)
        assert seat.nics == ()


def test_the_users_order_stays(host):
    seats, _ = find_seats(environment={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, root=host.root)
    assert environments(seats)[0]["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_cpus_that_this_process_may_not_use(gpus, tmp_path):
    gpus({"cpus": [4000]})
    ((seat,), _) = find_seats(environment={}, root=tmp_path)
    assert seat.cores == () and str(seat).endswith("all CPUs")

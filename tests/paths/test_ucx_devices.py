"""Which network devices UCX is kept to, by what a listener is bound to."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import psutil
import pytest

from dask_fabric.paths.ucx.devices import kept_to

TRANSPORTS = (
    "posix/memory", "self/memory0", "cuda_copy/cuda", "tcp/lo", "tcp/eth0", "tcp/ib0",
    "rc_mlx5/mlx5_0:1", "ud_mlx5/mlx5_0:1",
)  # fmt: skip
ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["192.0.2.2", "192.0.2.3", "fd00::2"],
    "ib0": ["10.1.0.2", "fe80::1%ib0"],
}
RDMA = "mlx5_0:1"


@pytest.fixture(autouse=True)
def interfaces(monkeypatch):
    def entry(text):
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        return SimpleNamespace(family=family, address=text)

    link = SimpleNamespace(family=psutil.AF_LINK, address="02:fc:00:00:00:01")
    found = {name: [link, *map(entry, texts)] for name, texts in ADDRESSES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


@pytest.mark.parametrize(
    ("host", "devices"),
    [
        ("192.0.2.2", f"eth0,{RDMA}"),
        ("192.0.2.3", f"eth0,{RDMA}"),
        ("fd00::2", f"eth0,{RDMA}"),
        ("10.1.0.2", f"ib0,{RDMA}"),
        ("127.0.0.1", "lo"),
        ("127.0.0.2", "lo"),
        ("::1", "lo"),
        ("localhost", "lo"),
    ],
)
def test_one_address_keeps_ucx_to_its_interface(host, devices):
    assert kept_to(host, TRANSPORTS) == {"NET_DEVICES": devices}


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "no.such.host.invalid"])
def test_a_wildcard_keeps_all(host):
    assert kept_to(host, TRANSPORTS) == {}


def test_where_ucx_has_nothing_for_the_interface_it_has_no_network_at_all():
    assert kept_to("127.0.0.1", ("posix/memory", "tcp/eth0")) == {"TLS": "^tcp"}
    more = ("posix/memory", "tcp/eth0", "tcp/ib0", "rc_mlx5/mlx5_0:1")
    assert kept_to("127.0.0.1", more) == {"TLS": "^tcp,rc_mlx5"}
    assert kept_to("192.0.2.2", ("tcp/lo", "rc_mlx5/mlx5_0:1")) == {"NET_DEVICES": RDMA}


def test_where_nothing_is_left_out_nothing_is_set():
    assert kept_to("192.0.2.2", ("posix/memory", "tcp/eth0", "rc_mlx5/mlx5_0:1")) == {}
    assert kept_to("127.0.0.1", ("posix/memory", "self/memory0")) == {}

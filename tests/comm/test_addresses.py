"""Addresses: their text, names of sockets, and what to advertise."""

from __future__ import annotations

import asyncio
import socket
from collections import namedtuple

import pytest

from dask_fabric.comm.network import addresses
from dask_fabric.comm.network.addresses import (
    advertised_host,
    format_address,
    host_of,
    numeric_address,
    resolve,
    resolve_blocking,
    route_source,
)

IPV4, IPV6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("sockname", "address"),
    [
        (("10.0.0.1", 8786), "fabric://10.0.0.1:8786"),
        (("::1", 8786, 0, 0), "fabric://[::1]:8786"),
        (("fe80::1", 8786, 0, 1), "fabric://[fe80::1%lo]:8786"),
        (("fe80::1%lo", 8786, 0, 1), "fabric://[fe80::1%lo]:8786"),
    ],
)
def test_format_address(sockname, address):
    assert format_address("fabric://", sockname) == address


def test_a_scope_that_is_gone_is_left_out():
    assert host_of(("fe80::1", 1, 0, 999_999)) == "fe80::1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", (IPV4, ("127.0.0.1", 5))),
        ("::1", (IPV6, ("::1", 5, 0, 0))),
        ("fe80::1%lo", (IPV6, ("fe80::1", 5, 0, 1))),
        ("localhost", None),
        ("", None),
        ("127.1", None),
        ("::zz", None),
    ],
)
def test_numeric_address(host, expected):
    assert numeric_address(host, 5) == expected


async def test_numeric_hosts_resolve_without_a_thread():
    class Loop:
        def getaddrinfo(self, *args, **kwargs):
            raise AssertionError("a thread was asked")

    assert await resolve(Loop(), "10.1.2.3", 7) == [(IPV4, ("10.1.2.3", 7))]


@pytest.mark.parametrize("host", ["localhost", ""])
async def test_names_resolve_to_all_their_addresses(host):
    found = await resolve(asyncio.get_running_loop(), host, 7)
    assert (IPV4, ("127.0.0.1", 7)) in found


async def test_an_unknown_name_is_an_oserror():
    with pytest.raises(OSError):
        await resolve(asyncio.get_running_loop(), "no-such-host.invalid", 7)


@pytest.mark.parametrize(
    ("host", "address"),
    [("localhost", "127.0.0.1"), ("", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::1", "::1")],
)
def test_resolve_blocking_prefers_ipv4(host, address):
    assert resolve_blocking(host) == address


def test_route_source():
    assert route_source("127.0.0.1") == "127.0.0.1"
    assert route_source("127.0.0.1", (IPV6,)) is None
    assert route_source("no-such-host.invalid") is None
    assert route_source("x" * 300) is None


Address = namedtuple("Address", "family address")
Status = namedtuple("Status", "isup")


@pytest.fixture
def host(monkeypatch):
    """A made-up host: routes by target, its name, its interfaces."""
    made = {"routes": {}, "name": [], "interfaces": {}, "down": (), "virtual": ()}

    def source(target, families=(IPV4, IPV6)):
        return made["routes"].get(target)

    monkeypatch.setattr(addresses, "route_source", source)
    monkeypatch.setattr(addresses, "_own_name", lambda family: made["name"])
    monkeypatch.setattr(addresses, "_is_virtual", lambda name: name in made["virtual"])
    monkeypatch.setattr(
        addresses.psutil,
        "net_if_addrs",
        lambda: {
            name: [Address(IPV6 if ":" in host else IPV4, host) for host in hosts]
            for name, hosts in made["interfaces"].items()
        },
    )
    monkeypatch.setattr(
        addresses.psutil,
        "net_if_stats",
        lambda: {name: Status(name not in made["down"]) for name in made["interfaces"]},
    )
    return made


def test_the_way_to_the_scheduler_wins(host):
    host["routes"] = {"10.9.0.1": "10.9.0.2", "8.8.8.8": "192.168.0.2"}
    assert advertised_host([IPV4], "10.9.0.1") == "10.9.0.2"
    assert advertised_host([IPV4]) == "192.168.0.2"


def test_a_scheduler_on_this_host_is_reached_by_loopback(host):
    host["routes"] = {"127.0.0.1": "127.0.0.1", "8.8.8.8": "192.168.0.2"}
    assert advertised_host([IPV4], "127.0.0.1") == "127.0.0.1"


def test_a_scheduler_without_a_route_is_no_help(host):
    host["routes"] = {"8.8.8.8": "192.168.0.2"}
    assert advertised_host([IPV4], "10.9.0.1") == "192.168.0.2"


def test_without_a_default_route_the_own_name_counts_unless_it_is_loopback(host):
    host["interfaces"] = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5"]}
    host["name"] = ["10.0.0.7"]
    assert advertised_host([IPV4]) == "10.0.0.7"
    host["name"] = ["127.0.1.1"]
    assert advertised_host([IPV4]) == "10.0.0.5"


def test_cards_before_bridges_and_before_link_local_and_never_what_is_down(host):
    host["interfaces"] = {
        "lo": ["127.0.0.1", "::1"],
        "docker0": ["172.17.0.1"],
        "dead0": ["10.0.0.9"],
        "zero0": ["169.254.3.4"],
        "eth0": ["10.0.0.5", "fe80::5%eth0", "fd00::5"],
    }
    host["virtual"], host["down"] = ("docker0",), ("dead0",)
    assert advertised_host([IPV4, IPV6]) == "10.0.0.5"
    assert advertised_host([IPV6]) == "fd00::5"
    del host["interfaces"]["eth0"]
    assert advertised_host([IPV4]) == "172.17.0.1"
    del host["interfaces"]["docker0"]
    assert advertised_host([IPV4]) == "169.254.3.4"


def test_loopback_where_there_is_nothing_else(host):
    assert advertised_host([IPV4, IPV6]) == "127.0.0.1"
    assert advertised_host([IPV6]) == "::1"


def test_no_warning_and_no_traffic_on_a_host_without_routes(monkeypatch):
    """distributed's own get_ip warns there; in tests, warnings are errors."""

    def no_route(self, address):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_route)
    assert advertised_host([IPV4])

"""Lanes over several interfaces: who listens where, and who connects to what."""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace

import dask
import psutil
import pytest
from distributed.comm import listen

from dask_fabric import config
from dask_fabric.comm.backend import UCXBackend
from dask_fabric.comm.channels import negotiator
from dask_fabric.errors import ConfigError
from dask_fabric.paths.lanes import interfaces, opener, provider
from dask_fabric.paths.lanes.provider import PROVIDER

from .test_lanes import ELSEWHERE, move, numbers, pair, path_of, widen

OTHERS = ("127.0.0.3", "127.0.0.4")


def entry(address: str, netmask: str) -> SimpleNamespace:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return SimpleNamespace(family=family, address=address, netmask=netmask)


@pytest.fixture
def host(monkeypatch):
    """A host with three interfaces."""
    found = {
        "eth0": [entry("10.1.0.7", "255.255.0.0"), entry("fe80::1%eth0", "ffff:ffff::")],
        "eth1": [entry("10.2.0.7", "255.255.255.0"), entry("fd00::7", "ffff:ffff:ffff:ffff::")],
        "eth2": [entry("10.3.0.7", "255.255.255.0")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    interfaces._addresses.cache_clear()
    yield found
    interfaces._addresses.cache_clear()


def test_all_addresses_of_the_named_interfaces_are_listened_on(host):
    assert interfaces.hosts(["eth1", "nothing", "eth0"]) == ["10.2.0.7", "10.1.0.7", "fd00::7"]
    assert interfaces.hosts([]) == []


def test_a_way_leads_from_the_interface_in_the_same_network(host):
    told = [("10.1.200.9", 1), ("10.2.0.9", 2), ("fd00::9", 3), ("10.3.0.9", 4)]
    own = ["eth0", "eth1"]
    by_ipv4 = (socket.AF_INET, ("10.2.0.9", 2), "10.2.0.7")
    by_ipv6 = (socket.AF_INET6, ("fd00::9", 3, 0, 0), "fd00::7")
    # Never both: they go over the same interface.
    assert interfaces.ways(told, own, "10.1.0.7", "10.1.200.9") == [by_ipv4]
    assert interfaces.ways([*reversed(told)], own, "10.1.0.7", "10.1.200.9") == [by_ipv6]
    assert interfaces.ways(told[1:3], own, "fd00::7", "fd00::1") == [by_ipv6]


def test_interfaces_of_one_network_share_the_ways(host):
    host["eth2"].append(entry("10.1.0.8", "255.255.0.0"))
    own, told = ["eth0", "eth2"], [(f"10.1.9.{number}", 1) for number in range(5)]
    ways = interfaces.ways(told, own, "10.1.0.7", "10.1.9.0")
    assert [way.source for way in ways] == ["10.1.0.8", "10.1.0.7", "10.1.0.8", "10.1.0.7"]
    ways = interfaces.ways(told, own, "10.9.0.7", "10.9.9.0")
    assert [way.source for way in ways] == ["10.1.0.7", "10.1.0.8"] * 2 + ["10.1.0.7"]


def test_one_address_of_each_network_is_enough_and_each_interface_has_one(host):
    host["eth1"].append(entry("fd00::8", "ffff:ffff:ffff:ffff::"))
    host.update({f"many{i}": [entry(f"10.{i}.9.{j}", "255.255.255.255") for j in (1, 2)]
                 for i in range(7)})  # fmt: skip
    assert interfaces.hosts(["eth1"]) == ["10.2.0.7", "fd00::7"]
    assert interfaces.hosts([f"many{i}" for i in range(7)]) == [f"10.{i}.9.1" for i in range(7)]


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "127.0.0.1", "localhost", "", "10.1.0.0.1", "::1"),
        *("fd00::9%eth0", "fd00::9%a\0b", "fd00::9%\u1234"),
    ],
)
def test_a_server_cannot_have_a_client_connect_to_anything_else(host, address):
    assert interfaces.ways([(address, 22)], ["eth0", "eth1"], "10.1.0.7", "10.1.0.9") == []


@pytest.mark.parametrize(
    "told",
    [
        *(None, 1, "text", b"12", {"a": 1}, [1], ["10.0.0.1"], [["10.0.0.1"]], [[1, 2]]),
        *([["10.0.0.1", 0]], [["10.0.0.1", 65536]], [["10.0.0.1", True]], [["10.0.0.1", "1"]]),
        *([["a" * 46, 1]], [["10.0.0.1", 1]] * 8, [["10.0.0.1", 1, 2]]),
    ],
)
def test_what_a_server_tells_is_checked(told):
    assert not PROVIDER.check({"most": 2, "places": told})
    assert PROVIDER.check({"most": 2, "places": [["10.0.0.1", 1]] * 7})


@pytest.mark.parametrize("value", ["ib0, ib1", "[ib0,ib1]", ["ib0", "ib1"], ("ib0", "ib1", "ib0")])
def test_interfaces_are_a_list_or_a_text(value):
    assert interfaces.as_names(value) == ("ib0", "ib1")


@pytest.mark.parametrize("value", [1, None, ["ib0", 1], ["a b"], ["a/b"], [""], ["x" * 16], {}])
def test_what_is_no_name_is_an_error(value):
    with pytest.raises(ValueError, match=r"."):
        interfaces.as_names(value)
    with pytest.raises(ConfigError, match=r"such as \[ib0, ib1\]"):
        config._parse("lanes.interfaces", value)


# ---------------------------------------------------------------- real connections


@pytest.fixture
def several(monkeypatch):
    """Addresses of loopback as if they were interfaces."""
    found = [
        interfaces.Own(name, ipaddress.ip_interface(f"{address}/8"))
        for name, address in zip("ab", OTHERS, strict=True)
    ]
    monkeypatch.setattr(interfaces, "addresses", lambda names: found if names else [])
    return {"lanes.interfaces": ["a", "b"]}


def sides(comm) -> set[tuple[str, str]]:
    """Own address and peer's of each lane."""
    lanes = [lane for lane in path_of(comm).lanes if lane is not None and lane.connection]
    socks = [lane.connection.sock for lane in lanes]
    return {(sock.getsockname()[0], sock.getpeername()[0]) for sock in socks}


async def elsewhere(address: str) -> str:
    """Give the address of a listener on every interface that is not the client's."""
    return f"fabric+tcp://{ELSEWHERE}:{address.rpartition(':')[2]}"


@pytest.mark.parametrize("address", [ELSEWHERE, "0.0.0.0"])
async def test_lanes_go_by_all_of_them_in_turn(several, address):
    async with pair(host=address, front=elsewhere, **several) as (near, far):
        await widen(near, far)
        assert {there for _, there in sides(near)} == {*OTHERS, ELSEWHERE}
        assert {here for here, there in sides(near) if there != ELSEWHERE} == {*OTHERS}
        assert set(near.statistics()["flows"]["addresses"]) == {here for here, _ in sides(near)}
        for sender, receiver in ((near, far), (far, near)):
            await move(sender, receiver, numbers(seed=1))
    assert provider._places == {}


async def test_only_if_the_client_was_told_too(several, monkeypatch):
    monkeypatch.setattr(interfaces, "ways", lambda *_: [])
    async with pair(**several) as (near, far):
        await widen(near, far)
        assert {there for _, there in sides(near)} == {ELSEWHERE}


async def test_a_way_that_leads_nowhere_costs_its_lanes_a_second(several, monkeypatch):
    """The port is closed there; the others carry on, and the next lanes avoid it."""
    monkeypatch.setattr(opener, "PAUSE_SECONDS", 0.01)
    async with pair(**several) as (near, far):
        with socket.socket() as closed:
            closed.bind((OTHERS[0], 0))
            place = closed.getsockname()
        path_of(near).ways[0] = path_of(near).ways[0]._replace(sockaddr=place)

        async def moved() -> bool:
            await move(far, near, numbers())
            return path_of(near).lane_count == path_of(far).lane_count == 4

        while not await moved():
            pass
        assert {there for _, there in sides(near)} == {OTHERS[1], ELSEWHERE}


async def test_a_way_without_an_answer_is_avoided_by_later_comms(several, monkeypatch):
    """Its port accepts nobody, so that nothing answers the client; the other listener is fine."""
    monkeypatch.setattr(opener, "WAY_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(opener, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(opener, "_silent", {})
    with socket.socket() as silent:
        silent.bind((OTHERS[0], 0))
        silent.listen(1)
        async with pair(**several) as (near, far):
            way = path_of(near).ways[0]
            path_of(near).ways[0] = way._replace(sockaddr=silent.getsockname())
            while way.sockaddr[0] in {each.sockaddr[0] for each in path_of(near).ways}:
                await move(far, near, numbers())
    async with pair(**several) as (near, far):
        await widen(near, far)
        assert {there for _, there in sides(near)} == {OTHERS[1], ELSEWHERE}
    monkeypatch.setattr(opener, "_silent", dict.fromkeys(opener._silent, 0.0))  # later
    async with pair(**several) as (near, far):
        await widen(near, far)
        assert {there for _, there in sides(near)} == {*OTHERS, ELSEWHERE}


async def test_what_holds_without_the_other_interfaces_does_not_hold_with_them(
    several, monkeypatch
):
    monkeypatch.setattr(opener, "_findings", {})
    for settings in (several, {}):
        async with pair(count="auto", **settings) as (near, far):
            await move(far, near, numbers(10_000_000))
    assert sorted(map(len, opener._findings)) == [1, 3]


async def test_a_taken_port_is_replaced_and_all_are_closed_in_the_end(several, monkeypatch):
    with socket.socket() as taken:
        taken.bind((OTHERS[0], 0))
        taken.listen()
        port = taken.getsockname()[1]
        known = {f"fabric.{key}": value for key, value in several.items()}
        with dask.config.set(known):
            async with listen(f"fabric+tcp://{ELSEWHERE}:{port}", print):
                (first, other), second = provider._places[ELSEWHERE, port]
                assert (first, second) == (OTHERS[0], (OTHERS[1], port)) and other != port
                socket.create_connection((first, other), 10).close()
    assert provider._places == {}
    for place in ((first, other), second):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place, 10)


async def test_an_address_that_is_not_here_is_a_warning(several, monkeypatch, caplog):
    monkeypatch.setattr(interfaces, "hosts", lambda names: ["2001:db8::1"])
    async with pair(host="0.0.0.0", front=elsewhere, **several) as (near, far):
        await widen(near, far)
    assert "cannot listen on 2001:db8::1 too" in caplog.text


async def test_a_listener_on_loopback_stays_there(several, monkeypatch, caplog):
    monkeypatch.setattr(interfaces, "hosts", lambda names: ["192.0.2.1", OTHERS[0]])
    with dask.config.set({"fabric.lanes.interfaces": ["a"]}):
        async with listen(f"fabric+tcp://{ELSEWHERE}:0", print) as listener:
            ((host, _),) = provider._places[listener.get_host_port()]
    assert host == OTHERS[0] and not caplog.text


async def test_listeners_that_share_a_port_have_places_of_their_own(several):
    with dask.config.set({"fabric.lanes.interfaces": ["a", "b"]}):
        async with listen(f"fabric+tcp://{ELSEWHERE}:0", print) as first:
            port = first.get_host_port()[1]
            places = dict(provider._places)
            async with listen(f"fabric+tcp://127.0.0.9:{port}", print):
                assert provider._places != places
            assert provider._places == places
    assert provider._places == {}


async def test_a_scheme_without_lanes_listens_on_its_own_address_only(several, monkeypatch):
    monkeypatch.setattr(interfaces, "hosts", None)  # not asked
    known = {"fabric.lanes.interfaces": ["a"], "fabric.lanes.count": 1}
    with dask.config.set(known):
        async with listen(f"fabric+tcp://{ELSEWHERE}:0", print):
            assert provider._places == {}
    paths = negotiator.between_hosts(UCXBackend.scheme, config.load(), False)
    assert PROVIDER not in [one for one, _ in paths]


def test_the_doctor_shows_addresses_and_names_what_has_none(host):
    details = PROVIDER.inspect(SimpleNamespace(interfaces=("eth0", "gone")))
    assert list(PROVIDER.rows(details)) == [("eth0", "10.1.0.7/16"), ("gone", "no address")]
    (advice,) = PROVIDER.advice(SimpleNamespace(details={"lanes": details}))
    assert advice.about == "interface gone"
    assert list(PROVIDER.advice(SimpleNamespace(details={}))) == []

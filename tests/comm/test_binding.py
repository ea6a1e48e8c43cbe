"""Binding: one port for all addresses, and nothing left open after a failure."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest

from dask_fabric.comm.network import binding


@contextlib.contextmanager
def bound(host, port=0):
    sockets = binding.bind(host, port, 16)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "0.0.0.0")],
)
def test_one_ipv4_address(host, address):
    with bound(host) as (sock,):
        assert sock.getsockname()[0] == address
        assert sock.gettimeout() == 0.0


def test_every_interface_by_both_families_on_one_port():
    with bound("") as sockets:
        assert sockets[0].family == socket.AF_INET
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        hosts = [sock.getsockname()[0] for sock in sockets]
        assert hosts in (["0.0.0.0", "::"], ["0.0.0.0"])


def test_a_taken_port():
    with bound("127.0.0.1") as (sock,), pytest.raises(OSError) as caught:
        binding.bind("127.0.0.1", sock.getsockname()[1], 16)
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_of_another_host():
    with pytest.raises(OSError) as caught:
        binding.bind("192.0.2.77", 0, 16)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_an_unknown_name():
    with pytest.raises(OSError):
        binding.bind("no-such-host.invalid", 0, 16)


@pytest.fixture
def ipv6_ports_taken(monkeypatch):
    """Twice, the port that IPv4 got is already taken for IPv6."""
    tried, opened = [], []
    bind_one = binding._bind_one

    def busy(family, sockaddr, **kwargs):
        if family == socket.AF_INET6:
            tried.append(sockaddr)
            if len(tried) <= 2:
                raise OSError(errno.EADDRINUSE, "taken")
            return None
        opened.append(bind_one(family, sockaddr, **kwargs))
        return opened[-1]

    monkeypatch.setattr(binding, "_bind_one", busy)
    found = [
        (socket.AF_INET, 1, 6, "", ("0.0.0.0", 0)),
        (socket.AF_INET6, 1, 6, "", ("::", 0, 0, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    return opened


def test_an_ephemeral_port_that_one_family_has_not_is_tried_anew(ipv6_ports_taken):
    with bound("") as sockets:
        assert len(sockets) == 1
        assert len(ipv6_ports_taken) == 3
        assert [sock.fileno() == -1 for sock in ipv6_ports_taken] == [True, True, False]


def test_a_host_without_ipv6_still_listens_everywhere(monkeypatch):
    made = socket.socket

    def no_ipv6(family, *args):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return made(family, *args)

    monkeypatch.setattr(socket, "socket", no_ipv6)
    with bound("") as (sock,):
        assert sock.family == socket.AF_INET
    with pytest.raises(OSError):
        binding.bind("::1", 0, 16)

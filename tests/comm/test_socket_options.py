"""Socket options: the same as distributed's, on both ends of a connection."""

from __future__ import annotations

import socket

import dask
import pytest
from distributed.comm.tcp import set_tcp_timeout

from dask_fabric.comm.network.socket_options import tune

TCP = socket.IPPROTO_TCP
OPTIONS = [
    (TCP, socket.TCP_NODELAY),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (TCP, socket.TCP_KEEPCNT),
    (TCP, socket.TCP_KEEPIDLE),
    (TCP, socket.TCP_KEEPINTVL),
    (TCP, socket.TCP_USER_TIMEOUT),
]


def options(sock) -> list[int]:
    return [sock.getsockopt(level, option) for level, option in OPTIONS]


class Reference:
    """An object that distributed's function accepts as a stream."""

    def __init__(self, sock):
        self.socket = sock

    def closed(self):
        return False


@pytest.mark.parametrize("timeout", ["30s", "11s", 300])
def test_the_same_as_distributed_sets(timeout):
    with (
        dask.config.set({"distributed.comm.timeouts.tcp": timeout}),
        socket.socket() as ours,
        socket.socket() as theirs,
    ):
        tune(ours)
        theirs.setsockopt(TCP, socket.TCP_NODELAY, 1)
        set_tcp_timeout(Reference(theirs))
        assert options(ours) == options(theirs)


def test_accepted_sockets_inherit_them():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tune(listening)
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert options(accepted) == options(listening)
                assert options(accepted)[0] == 1


def test_a_timeout_below_the_probes_is_refused_with_its_key():
    with (
        dask.config.set({"distributed.comm.timeouts.tcp": "10s"}),
        socket.socket() as sock,
        pytest.raises(ValueError, match=r"distributed\.comm.timeouts\.tcp is '10s'"),
    ):
        tune(sock)


def test_options_that_the_kernel_refuses_are_logged(caplog):
    with socket.socket(socket.AF_UNIX) as sock:
        tune(sock)
    assert "Could not set the TCP options" in caplog.text

"""The schemes as distributed finds them, and their use of TLS."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import dask
import pytest
from distributed.comm import (
    connect,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    listen,
    resolve_address,
)
from distributed.comm.core import FatalCommClosedError
from distributed.comm.registry import get_backend
from distributed.security import Security
from distributed.utils import wait_for

from dask_fabric.comm.network.addresses import advertised_host
from dask_fabric.errors import UnavailableError

SCHEMES = ["fabric", "fabric+tcp", "fabric+tls", "fabric+ucx"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_entry_points_lead_here(scheme):
    assert type(get_backend(scheme)).__module__ == "dask_fabric.comm.backend"
    assert get_backend(scheme).scheme.name == scheme


def test_importing_registers_and_patches_nothing():
    code = (
        "import distributed.comm.registry as r, distributed.comm as c;"
        "before = dict(r.backends);"
        "import dask_fabric.comm.backend;"
        "assert before == r.backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_addresses(scheme):
    assert resolve_address(f"{scheme}://localhost:7") == f"{scheme}://127.0.0.1:7"
    assert resolve_address(f"{scheme}://[::1]:7") == f"{scheme}://[::1]:7"
    assert get_address_host(f"{scheme}://[fd00::1]:7") == "fd00::1"
    assert get_address_host_port(f"{scheme}://name:7") == ("name", 7)
    assert get_local_address_for(f"{scheme}://127.0.0.1:7") == f"{scheme}://127.0.0.1"
    assert get_local_address_for(f"{scheme}://localhost:7") == f"{scheme}://127.0.0.1"


def test_the_local_address_for_a_host_without_route(monkeypatch):
    import dask_fabric.comm.backend as backend

    monkeypatch.setattr(backend, "route_source", lambda host, families: None)
    expected = f"fabric://{advertised_host((socket.AF_INET,))}"
    assert get_local_address_for("fabric://10.1.2.3:4") == expected


async def test_without_ucx_the_scheme_says_so_and_what_to_do():
    with dask.config.set({"fabric.ucx.enabled": False}):
        with pytest.raises(
            FatalCommClosedError, match=r"10\.1\.2\.3:4: fabric.ucx.enabled is false"
        ):
            await connect("fabric+ucx://10.1.2.3:4")
        with pytest.raises(OSError, match="doctor --require ucx") as caught:
            await listen("fabric+ucx://0.0.0.0", print)
    assert isinstance(caught.value, UnavailableError)


async def ignore(comm):
    await comm.close()


@pytest.fixture(scope="module")
def security():
    return Security.temporary()


@pytest.fixture
def listen_args(security):
    return security.get_listen_args("scheduler")


@pytest.fixture
def connect_args(security):
    return security.get_connection_args("client")


async def test_fabric_with_certificates_is_encrypted_and_keeps_its_name(listen_args, connect_args):
    async with listen("fabric://127.0.0.1", ignore, **listen_args) as listener:
        comm = await connect(listener.contact_address, **connect_args)
        assert comm.local_address.startswith("fabric://")
        assert comm.extra_info["cipher"]
        await comm.close()


async def test_fabric_and_fabric_tls_meet(listen_args, connect_args):
    async with listen("fabric://127.0.0.1", ignore, **listen_args) as listener:
        address = listener.contact_address.replace("fabric://", "fabric+tls://")
        await (await connect(address, **connect_args)).close()


async def test_fabric_tcp_stays_plain_unless_encryption_is_required(listen_args, connect_args):
    plain = {"ssl_context": listen_args["ssl_context"]}
    async with listen("fabric+tcp://127.0.0.1", ignore, **plain) as listener:
        comm = await connect(listener.contact_address)
        assert comm.extra_info == {}
        await comm.close()
        with pytest.raises(RuntimeError, match="encryption required"):
            await connect(listener.contact_address, **connect_args)


@pytest.mark.parametrize("context", [None, "not a context"])
async def test_tls_without_a_context_is_refused(context):
    with pytest.raises(TypeError, match="ssl_context"):
        await listen("fabric+tls://127.0.0.1", ignore, ssl_context=context)
    with pytest.raises(TypeError, match="ssl_context"):
        await connect("fabric+tls://127.0.0.1:1", ssl_context=context)


async def logged(caplog, text: str) -> None:
    """Wait until the server has logged its part, too."""

    async def poll():
        while text not in caplog.text:
            await asyncio.sleep(0)

    await wait_for(poll(), 5)


async def test_a_plain_client_at_a_server_with_tls(listen_args, caplog):
    async with listen("fabric://127.0.0.1", ignore, **listen_args) as listener:
        with pytest.raises(FatalCommClosedError, match="TLS"):
            await connect(listener.contact_address, timeout=30)
        await logged(caplog, "this server requires TLS")


async def test_a_client_with_tls_at_a_plain_server(connect_args, caplog):
    async with listen("fabric://127.0.0.1", ignore) as listener:
        with pytest.raises(FatalCommClosedError, match="TLS"):
            await connect(listener.contact_address, timeout=30, **connect_args)
        await logged(caplog, "TLS")


async def test_certificates_of_another_cluster(listen_args, caplog):
    stranger = Security.temporary()
    async with listen("fabric://127.0.0.1", ignore, **listen_args) as listener:
        with pytest.raises(FatalCommClosedError, match="TLS certificate does not match"):
            await connect(
                listener.contact_address, timeout=30, **stranger.get_connection_args("client")
            )
        await logged(caplog, "TLS")


async def test_the_name_of_the_server_is_asked_for(listen_args, connect_args):
    connect_args["ssl_context"].check_hostname = True
    async with listen("fabric://127.0.0.1", ignore, **listen_args) as listener:
        address = listener.contact_address
        comm = await connect(address, server_hostname="dask-internal", **connect_args)
        await comm.close()
        with pytest.raises(FatalCommClosedError, match="certificate"):
            await connect(address, server_hostname="elsewhere", **connect_args)

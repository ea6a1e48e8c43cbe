"""``dask scheduler`` and ``dask worker``, with every option that names an address."""

from __future__ import annotations

import operator

import pytest
from distributed import Client

from ..conftest import NO_DASHBOARD_OPTIONS

pytestmark = pytest.mark.clusters

SECONDS = 30


@pytest.fixture
def security_options(security, tmp_path) -> tuple[str, ...]:
    """Certificates in files, as the commands want them."""
    if security is None:
        return ()
    (tmp_path / "ca.pem").write_text(security.tls_ca_file)
    (tmp_path / "key.pem").write_text(security.tls_worker_key)
    return (
        f"--tls-ca-file={tmp_path}/ca.pem",
        f"--tls-cert={tmp_path}/ca.pem",
        f"--tls-key={tmp_path}/key.pem",
    )


def worker_addresses(client: Client, count: int) -> list[str]:
    client.wait_for_workers(count, timeout=SECONDS)
    assert client.submit(operator.add, 1, 2).result(timeout=SECONDS) == 3
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def test_protocol_option_and_bare_workers(scheme, security, security_options, run, free_port):
    port = free_port()
    address = f"{scheme}://127.0.0.1:{port}"
    scheduler = ["scheduler", *NO_DASHBOARD_OPTIONS, "--host", "127.0.0.1", "--port", str(port)]
    run(*scheduler, "--protocol", scheme, *security_options)
    # Named after the scheduler alone, with a nanny; and with the address in each option.
    worker = ["worker", address, "--no-dashboard", "--nthreads", "1", *security_options]
    run(*worker)
    listen_port = free_port()
    contact = f"{scheme}://127.0.0.4:{listen_port}"
    run(
        *worker,
        "--no-nanny",
        "--listen-address",
        f"{scheme}://0.0.0.0:{listen_port}",
        "--contact-address",
        contact,
    )
    with Client(address, security=security, timeout=SECONDS) as client:
        found = worker_addresses(client, 2)
        assert contact in found
        assert sum(name.startswith(f"{scheme}://127.0.0.1:") for name in found) == 1


def test_host_and_interface_options_and_the_default_scheme(
    scheme, security, security_options, run, free_port
):
    default = {"DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": scheme}
    port = free_port()
    if security:
        # Dask takes tls for granted where it is given certificates and no protocol.
        security_options += ("--protocol", scheme)
    scheduler = ["scheduler", *NO_DASHBOARD_OPTIONS, "--port", str(port), *security_options]
    run(*scheduler, "--host", f"{scheme}://127.0.0.1", **default)
    worker = ["worker", f"127.0.0.1:{port}", "--no-dashboard", "--no-nanny", "--nthreads", "1"]
    worker += security_options
    run(*worker, "--interface", "lo", "--protocol", scheme, **default)
    run(*worker, "--host", f"{scheme}://127.0.0.2", **default)
    address = f"{scheme}://127.0.0.1:{port}"
    with Client(address, security=security, timeout=SECONDS) as client:
        hosts = [name.rpartition(":")[0] for name in worker_addresses(client, 2)]
        assert hosts == [f"{scheme}://127.0.0.1", f"{scheme}://127.0.0.2"]

"""``dask scheduler`` and ``dask worker``, with every option that names an address."""

from __future__ import annotations

import contextlib
import operator
import os
import socket
import subprocess
import sys

import pytest
from distributed import Client

SECONDS = 30


@pytest.fixture
def run(tmp_path):
    """Start a dask command, and end it with the test; its output is in the file returned."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, prefix: tuple[str, ...] = (), **environment: str):
            log = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", *arguments],
                env={**os.environ, **environment},
                cwd=tmp_path,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(_end, process)
            return log

        yield run


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def worker_addresses(client: Client, count: int) -> list[str]:
    client.wait_for_workers(count, timeout=SECONDS)
    assert client.submit(operator.add, 1, 2).result(timeout=SECONDS) == 3
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def test_protocol_option_and_bare_workers(scheme, security, security_options, run):
    port = free_port()
    address = f"{scheme}://127.0.0.1:{port}"
    scheduler = ["scheduler", "--no-dashboard", "--host", "127.0.0.1", "--port", str(port)]
    run(*scheduler, "--protocol", scheme, *security_options)
    # Named after the scheduler alone, with a nanny; and with the address in each option.
    worker = ["worker", address, "--no-dashboard", "--nthreads", "1", *security_options]
    run(*worker)
    listen_port = free_port()
    contact = f"{scheme}://localhost:{listen_port}"
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


def test_host_and_interface_options_and_the_default_scheme(scheme, security, security_options, run):
    default = {"DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": scheme}
    port = free_port()
    run(
        "scheduler", "--no-dashboard", "--host", f"{scheme}://127.0.0.1", "--port", str(port),
        *security_options, **default,
    )  # fmt: skip
    worker = ["worker", f"127.0.0.1:{port}", "--no-dashboard", "--no-nanny", "--nthreads", "1"]
    worker += security_options
    run(*worker, "--interface", "lo", "--protocol", scheme, **default)
    run(*worker, "--host", f"{scheme}://127.0.0.2", **default)
    address = f"{scheme}://127.0.0.1:{port}"
    with Client(address, security=security, timeout=SECONDS) as client:
        hosts = [name.rpartition(":")[0] for name in worker_addresses(client, 2)]
        assert hosts == [f"{scheme}://127.0.0.1", f"{scheme}://127.0.0.2"]

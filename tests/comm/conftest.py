"""What the suites of comms share."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.comm.registry import get_backend
from tests.conftest import schemes

from dask_fabric.comm.network.attempts import Attempts


@pytest.fixture(autouse=True)
def no_attempts_before(monkeypatch):
    """A server may get the port of one before it, whose errors were logged and are not again."""
    for scheme in schemes():
        monkeypatch.setattr(get_backend(scheme).get_connector(), "_attempts", Attempts())


@pytest.fixture
def maybe_security(scheme, temporary_security, tmp_path):
    """The certificates of a scheme, as files for another process."""

    class Files:
        use = scheme == "fabric+tls"
        tls_ca_file, tls_client_cert, tls_client_key = (
            str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")
        )

    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        Path(getattr(Files, name)).write_text(getattr(temporary_security, name))
    return Files

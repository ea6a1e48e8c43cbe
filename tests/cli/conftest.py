"""What the tests of the commands share."""

from __future__ import annotations

import os

import pytest
from distributed.security import Security


@pytest.fixture(autouse=True)
def same_environment():
    """Commands set variables for the rest of their process, which here is that of all tests."""
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]


@pytest.fixture
def certificates(temporary_security: Security) -> dict[str, str]:
    """Settings of Dask's that name certificates for workers."""
    return {
        "distributed.comm.tls.ca-file": temporary_security.tls_ca_file,
        "distributed.comm.tls.worker.cert": temporary_security.tls_worker_cert,
        "distributed.comm.tls.worker.key": temporary_security.tls_worker_key,
    }

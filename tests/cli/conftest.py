"""Fixtures for the tests of the commands."""

from __future__ import annotations

import os

import pytest
from distributed.security import Security


@pytest.fixture(autouse=True)
def same_environment():
    """Undo the changes that commands make to the environment of their process."""
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]


@pytest.fixture
def certificates(temporary_security: Security) -> dict[str, str]:
    """Dask's settings with certificates for workers."""
    return {
        "distributed.comm.tls.ca-file": temporary_security.tls_ca_file,
        "distributed.comm.tls.worker.cert": temporary_security.tls_worker_cert,
        "distributed.comm.tls.worker.key": temporary_security.tls_worker_key,
    }

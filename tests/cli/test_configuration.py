"""The configuration in the report."""

from __future__ import annotations

import dask.config
import pytest

from dask_fabric import config
from dask_fabric.cli.configuration import inspect_configuration

TLS = {
    "distributed.comm.tls.ca-file": "ca.pem",
    "distributed.comm.tls.worker.cert": "cert.pem",
}


@pytest.fixture(autouse=True)
def pristine():
    with dask.config.set({"fabric": {}, "distributed.comm.default-scheme": "tcp"}):
        yield


def test_defaults():
    found = inspect_configuration()
    assert (found.changed, found.unknown, found.error) == ({}, (), "")
    assert (found.default_scheme, found.certificates) == ("tcp", False)
    assert found.require_encryption is False
    assert found.socket_backlog_count > 0
    assert found.value("unix-sockets") is True
    assert found.value("no-such") is None


def test_what_is_changed_and_what_means_nothing():
    config._warn_unknown.cache_clear()
    changes = {"unix-sockets": False, "pool": {"max_idle": "2 GiB", "odd": 1}}
    with dask.config.set({"fabric": changes, **TLS}):
        found = inspect_configuration()
    assert found.changed == {"fabric.unix-sockets": False, "fabric.pool.max-idle": "2 GiB"}
    assert found.unknown == ("fabric.pool.odd",)
    assert found.value("unix-sockets") is False
    assert found.certificates is True


@pytest.mark.parametrize("section", [{"unix-sockets": 1}, {"pool": 5}, 7])
def test_what_cannot_be_used(section):
    with dask.config.set({"fabric": section}):
        found = inspect_configuration()
    assert found.error.startswith("fabric")
    assert "expected" in found.error

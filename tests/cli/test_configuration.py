"""The configuration in the report."""

from __future__ import annotations

import dask.config
import pytest

from dask_fabric import config
from dask_fabric.cli.configuration import inspect_configuration
from dask_fabric.cli.doctor.advice import scheme_uses
from dask_fabric.cli.doctor.render import render
from dask_fabric.cli.doctor.report import Facts
from dask_fabric.comm.network import munge
from dask_fabric.errors import ConfigError

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


def shown(found) -> str:
    facts = Facts(configuration=found)
    return render(facts, scheme_uses(facts), (), 100)


def test_munge(monkeypatch):
    monkeypatch.setattr(munge, "user", lambda settings: 0)
    with dask.config.set({"fabric": {"auth": {"method": "munge"}}}):
        found = inspect_configuration()
    assert (found.user, found.keys, found.error) == ("root (0)", (), "")
    assert "munged answers: this is a process of user root (0)" in shown(found)
    assert "key that every process must have" not in shown(found)


def test_munge_that_does_not_work(monkeypatch):
    def fail(settings):
        raise ConfigError("fabric.auth.method is munge, and munged did not answer")

    monkeypatch.setattr(munge, "user", fail)
    with dask.config.set({"fabric": {"auth": {"method": "munge"}}}):
        found = inspect_configuration()
    assert (found.user, found.keys) == ("", ())
    assert found.error == "fabric.auth.method is munge, and munged did not answer"
    assert "MUNGE, which every process must use  it does not work" in " ".join(
        line.strip() for line in shown(found).splitlines()
    ).replace("   ", "  ")

"""What the loader of UCX says, and what is made of it."""

from __future__ import annotations

import dask.config
import pytest

from dask_fabric import config
from dask_fabric.paths.ucx import library
from dask_fabric.paths.ucx.survey import Ucx, inspect_ucx


@pytest.fixture
def loader(monkeypatch):
    """The loader, whose probes answer at once."""
    found = {}
    monkeypatch.setattr(library, "probe", lambda path, source, variables: found[path])
    monkeypatch.setattr(
        library,
        "candidates",
        lambda explicit: [library.Candidate("test", path) for path in found],
    )
    with dask.config.set({"fabric": {}}):
        yield library, found


def test_the_choice_and_the_rest(loader):
    library, found = loader
    names = ("rc_mlx5/mlx5_0:1", "cuda_copy/cuda")
    found["/a"] = library.Library("/a", "site", (1, 15, 0), names, ("host", "cuda"))
    found["/b"] = library.Library("/b", "wheel", (), (), (), "undefined symbol")
    told = inspect_ucx(config.load().paths.ucx)
    chosen = told.chosen
    assert (chosen.path, chosen.version, chosen.transports) == ("/a", "1.15.0", names)
    assert chosen.has_rdma and chosen.has_gpu and chosen.refusal == ""
    (other,) = told.others
    assert (other.version, other.refusal) == (None, "undefined symbol")
    assert told.reason and told.why_wanted


def test_an_explicit_library_that_does_not_work(loader):
    library, found = loader
    found["/b"] = library.Library("/b", "explicit", error="undefined symbol")
    with dask.config.set({"fabric.ucx.library": "/b"}):
        told = inspect_ucx(config.load().paths.ucx)
    assert told.chosen is None and "undefined symbol" in told.reason


def test_none():
    assert Ucx().chosen is None and Ucx().others == ()

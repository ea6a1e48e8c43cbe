"""Every UCX library of this machine, each for tests of its own."""

from __future__ import annotations

import functools

import pytest

from dask_fabric.paths import ucx_library
from dask_fabric.paths.ucx_candidates import candidates


@functools.cache
def libraries() -> tuple[ucx_library.Library, ...]:
    variables = tuple(ucx_library.environment(()).items())
    probed = [ucx_library.probe(place.path, place.source, variables) for place in candidates()]
    return tuple({library.path: library for library in probed if not library.error}.values())


def pytest_generate_tests(metafunc):
    if "library" in metafunc.fixturenames:
        found = libraries() or [pytest.param(None, marks=pytest.mark.skip("no UCX on this host"))]
        metafunc.parametrize("library", found, ids=name_of, scope="session")


def name_of(library) -> str:
    return "ucx" + ".".join(map(str, library.version)) if library else "none"

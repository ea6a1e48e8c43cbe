"""The choice of a libfabric and its provider: the places, the probe, and the reasons."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ofi import library as ofi_library
from dask_fabric.paths.ofi.domains import Domain
from dask_fabric.paths.ofi.kinds import BY_NAME, KINDS, on_this_host
from dask_fabric.paths.ofi.library import SONAME, Library
from dask_fabric.paths.places import Candidate

from ..conftest import ofi_libraries


def domains(*providers: str) -> tuple[Domain, ...]:
    return tuple(Domain(provider, f"{provider}-domain", "") for provider in providers)


SYSTEM = Library("/usr/lib/libfabric.so.1", "system", (1, 17), domains("tcp;ofi_rxm", "shm"))
CRAY = replace(SYSTEM, path="/opt/cray", source="cray", domains=domains("cxi", "tcp;ofi_rxm"))
BROKEN = Library("/broken", "broken", error="cannot open shared object file")
LIBRARIES = [
    pytest.param(one, id=".".join(map(str, one.version))) for one in ofi_libraries()
] or [pytest.param(None, marks=pytest.mark.skip("no libfabric on this host"))]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Let each test start as a process does that has probed nothing."""
    monkeypatch.setattr(ofi_library, "probe", functools.cache(ofi_library.probe.__wrapped__))
    log = functools.cache(ofi_library._log_once.__wrapped__)
    monkeypatch.setattr(ofi_library, "_log_once", log)


@pytest.fixture
def found(monkeypatch):
    """Decide what the probes find."""

    def decide(*libraries):
        by_source = {library.source: library for library in libraries}
        places = [Candidate(library.source, library.path) for library in libraries]
        monkeypatch.setattr(ofi_library, "candidates", lambda explicit: places)
        monkeypatch.setattr(ofi_library, "probe", lambda path, source, variables: by_source[source])

    return decide


def kinds(*names):
    return tuple(BY_NAME[name] for name in names)


# ---- the choice


@pytest.mark.parametrize(
    ("libraries", "wanted", "expected"),
    [
        ((SYSTEM, CRAY), ("cxi",), (CRAY, "cxi")),
        ((SYSTEM, CRAY), ("shm",), (SYSTEM, "shm")),
        ((SYSTEM, CRAY), ("tcp;ofi_rxm",), (SYSTEM, "tcp;ofi_rxm")),
        ((BROKEN, CRAY), ("opx", "cxi"), (CRAY, "cxi")),
        ((SYSTEM,), ("cxi",), (None, None)),
        ((BROKEN,), ("cxi",), (None, None)),
        ((SYSTEM,), (), (None, None)),
    ],
)
@pytest.mark.parametrize("survey", [False, True])
def test_the_first_with_the_most_wanted_provider(found, libraries, wanted, expected, survey):
    found(*libraries)
    choice = ofi_library.choose(kinds(*wanted), survey=survey)
    assert (choice.library, choice.kind and choice.kind.name) == expected
    assert choice.reason and all(reason for _, reason in choice.refused)
    if survey:
        assert {choice.library, *(one for one, _ in choice.refused)} >= set(libraries)


def test_the_choice_is_logged_once(found, caplog):
    caplog.set_level(logging.INFO, ofi_library.__name__)
    found(BROKEN, CRAY)
    for _ in range(2):
        ofi_library.choose(kinds("cxi"))
    first, second = (record.getMessage() for record in caplog.records)
    assert "cxi of libfabric 1.17" in first and "cannot open shared object file" in second


def test_an_explicit_library_that_fails_is_an_error(tmp_path):
    with pytest.raises(UnavailableError, match=r"fabric\.ofi\.library is '.*no such file"):
        ofi_library.choose(kinds("cxi"), str(tmp_path / "no such file"))


# ---- the places


def test_places_in_their_order(monkeypatch, tmp_path):
    for name in ("cray/1.9.2/lib64", "cray/1.22.0/lib64", "site/lib", "conda/lib", "lib/mpich"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / SONAME).touch()
    monkeypatch.setattr(ofi_library, "CRAY_FOLDER", tmp_path / "cray")
    monkeypatch.setattr(ofi_library, "mapped_files", lambda pattern: ["/loaded/libfabric.so.1"])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("EBROOTLIBFABRIC", str(tmp_path / "site"))
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    paths = [candidate.path for candidate in ofi_library.candidates()]
    own = ("cray/1.22.0/lib64", "cray/1.9.2/lib64", "site/lib", "conda/lib", "lib/mpich")
    expected = [str(tmp_path / name / SONAME) for name in own]
    assert paths[0] == "/loaded/libfabric.so.1"
    assert [path for path in paths if path.startswith(str(tmp_path))] == expected


def test_an_explicit_folder_stands_for_the_library_in_it(tmp_path):
    path = str(tmp_path / SONAME)
    assert ofi_library.candidates(str(tmp_path)) == [Candidate("fabric.ofi.library", path)]


# ---- the host


def device(root, kind, name, driver=None):
    place = root / "sys/class" / kind / name / "device"
    place.mkdir(parents=True)
    if driver:
        (place / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")


@pytest.mark.parametrize(
    ("kind", "driver", "expected"),
    [
        ("cxi", None, ["cxi"]),
        ("infiniband", "efa", ["efa"]),
        ("infiniband", "hfi1", ["opx", "psm3"]),
        ("infiniband", "mlx5_core", ["verbs;ofi_rxm"]),
        ("infiniband", None, ["verbs;ofi_rxm"]),
    ],
)
def test_devices_of_a_host(tmp_path, kind, driver, expected):
    assert on_this_host(tmp_path) == ()
    device(tmp_path, kind, "one0", driver)
    assert [kind.name for kind in on_this_host(tmp_path)] == expected


def test_infiniband_is_left_to_ucx_unless_told(monkeypatch):
    monkeypatch.setattr(ofi_library, "on_this_host", lambda: kinds("verbs;ofi_rxm"))
    assert ofi_library.wanted_kinds(None, None) == ()
    assert ofi_library.wanted_kinds(True, None) == kinds("verbs;ofi_rxm")
    assert ofi_library.wanted_kinds(None, "tcp") == kinds("tcp")


def test_providers_in_software_are_never_found_by_devices():
    assert [kind.name for kind in KINDS if not kind.network] == [
        *("tcp", "tcp;ofi_rxm", "net", "shm", "sockets"),
    ]
    assert all(kind.needs for kind in KINDS)


# ---- the probe


@pytest.mark.parametrize("one", LIBRARIES)
def test_a_library_tells_of_itself(one):
    assert one.error == "" and one.version >= (1, 15)
    assert os.path.isfile(one.path)
    assert "shm" in one.providers and "tcp;ofi_rxm" in one.providers


def test_options_reach_the_probe():
    for library in ofi_libraries():
        variables = tuple(ofi_library.environment([("FI_PROVIDER", "shm")]).items())
        assert ofi_library.probe(library.path, "test", variables).providers == ("shm",)


def test_what_is_no_libfabric_is_refused():
    assert "it has no fi_getinfo" in ofi_library.probe("libc.so.6", "test").error
    assert "cannot be loaded" in ofi_library.probe("/no/libfabric.so.1", "test").error


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; os.kill(os.getpid(), 6)", "status -6"),
        ("print('no json')", "Expecting value"),
        ("print('[1]')", "not an answer"),
        ("print('{}')", "version"),
        ('print(\'{"error": "no such thing"}\')', "no such thing"),
        ("import time; time.sleep(1000)", "within 0.3 s"),
    ],
)
def test_a_probe_may_say_anything(monkeypatch, tmp_path, program, error):
    monkeypatch.setattr(ofi_library, "PROGRAM", tmp_path / "probe.py")
    monkeypatch.setattr(ofi_library, "PROBE_SECONDS", 0.3 if "sleep" in program else 10.0)
    (tmp_path / "probe.py").write_text(program)
    found = ofi_library.probe("/some/libfabric.so.1", "test")
    assert error in found.error and found.source == "test"


def test_importing_the_package_loads_no_libfabric():
    code = """
import dask_fabric.comm.backend, sys
print("libfabric" in open("/proc/self/maps").read().replace("paths/ofi/libfabric", ""))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


# ---- libfabric's environment


def test_the_environment_wins_over_options_and_they_over_what_a_provider_needs(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FI_CXI_OPTIMIZED_MRS", "1")
    options = [("FI_MR_CACHE_MONITOR", "kdreg2")]
    found = ofi_library.environment(options, BY_NAME["cxi"])
    assert found["FI_MR_CACHE_MONITOR"] == "kdreg2" and found["FI_PROVIDER"] == "cxi"
    assert "FI_CXI_OPTIMIZED_MRS" not in found
    assert found["IPATH_NO_BACKTRACE"] == "1"

"""What suites share: the schemes, their certificates, two hosts, and a host made of files.

Suites over schemes run over every one of ours, or over those in ``DASK_FABRIC_TEST_SCHEMES``
(comma-separated; ``tcp`` and ``tls`` work too, for a look at the reference).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import logging
import os
import signal
import subprocess
from pathlib import Path

import dask
import pytest
from benchmarks.networks import connect, mesh, namespaces
from distributed import LocalCluster
from distributed.security import Security
from tests.slow_memory import SlowMemory

from dask_fabric.comm import runtime
from dask_fabric.memory import files, pool
from dask_fabric.paths.ofi import library as ofi_library
from dask_fabric.paths.ucx import library as ucx_library
from dask_fabric.paths.ucx.candidates import candidates

# Dask lets its loggers propagate only where somebody listens when it is imported, as pytest does in
# some of its versions.
logging.getLogger("distributed").propagate = True

# Both networks join the two hosts, and no default route leads anywhere.
NETWORKS = ("10.77.0", "10.78.0")
TLS_SCHEMES = ("tls", "fabric+tls")
UCX_SCHEME = "fabric+ucx"
OFI_SCHEME = "fabric+ofi"
# A scheduler's HTTP server is always there: not on Dask's own port, which others use.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
LOCAL_CLUSTER = {"dashboard_address": None, "scheduler_kwargs": NO_DASHBOARD}
NO_DASHBOARD_OPTIONS = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
REFERENCES = ("tcp", "tls")
LIMIT_AGAIN_SECONDS = 5


@functools.cache
def ucx_libraries() -> tuple[ucx_library.Library, ...]:
    """Every UCX of this host; first called while tests are collected, when none is loaded.

    None if ``DASK_FABRIC_TEST_UCX`` is ``none``.
    """
    if os.environ.get("DASK_FABRIC_TEST_UCX") == "none":
        return ()
    variables = tuple(ucx_library.environment(()).items())
    probed = [ucx_library.probe(place.path, place.source, variables) for place in candidates()]
    return tuple({library.path: library for library in probed if not library.error}.values())


def ucx_params() -> list:
    """Every UCX of this host, as parameters; all but the newest are slow."""
    newest = max((library.version for library in ucx_libraries()), default=None)
    return [
        pytest.param(
            library,
            id=".".join(map(str, library.version)),
            marks=() if library.version == newest else pytest.mark.slow,
        )
        for library in ucx_libraries()
    ]


@functools.cache
def ofi_libraries() -> tuple[ofi_library.Library, ...]:
    """Every libfabric of this host; none if ``DASK_FABRIC_TEST_OFI`` is ``none``."""
    if os.environ.get("DASK_FABRIC_TEST_OFI") == "none":
        return ()
    variables = tuple(sorted(ofi_library.environment(()).items()))
    places = ofi_library.candidates()
    probed = [ofi_library.probe(place.path, place.source, variables) for place in places]
    return tuple({library.path: library for library in probed if not library.error}.values())


def ofi_settings(provider: str = "tcp") -> dict[str, object]:
    """Give settings by which *provider* of the newest libfabric that has it is used.

    None of this host has it: skips.
    """
    offers = [one for one in ofi_libraries() if provider in one.providers]
    if not offers:
        pytest.skip(f"no libfabric on this host offers {provider}")
    newest = max(offers, key=lambda one: one.version)
    return {"fabric.ofi.provider": provider, "fabric.ofi.library": newest.path}


def unsharing(*options: str) -> list[str]:
    """Give what starts a command in namespaces of its own; skips where there are none."""
    command = ["unshare", *options]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no such namespaces here: {exc}")
    return command


def schemes() -> list[str]:
    named = os.environ.get("DASK_FABRIC_TEST_SCHEMES")
    if named:
        return named.split(",")
    found = ["fabric", "fabric+tcp"]
    if importlib.util.find_spec("dask_fabric.engine.tls_transport"):
        found.append("fabric+tls")
    if ucx_libraries():
        found.append(UCX_SCHEME)
    return found


def scheme_params() -> list:
    """The schemes, those of libraries too, with the reason why they are none of them."""
    if "DASK_FABRIC_TEST_SCHEMES" in os.environ:
        return schemes()
    found: list = schemes()
    if UCX_SCHEME not in found:
        found.append(pytest.param(UCX_SCHEME, marks=pytest.mark.skip("no UCX on this host")))
    is_there = any("tcp" in library.providers for library in ofi_libraries())
    no_library = pytest.mark.skip("no libfabric with the provider tcp on this host")
    found.append(pytest.param(OFI_SCHEME, marks=() if is_there else no_library))
    return found


@pytest.hookimpl(wrapper=True, optionalhook=True)  # of pytest-timeout
def pytest_timeout_set_timer():
    """Repeat the error of a time limit: asyncio swallows one that comes in a callback."""
    is_set = yield
    limit_seconds, _ = signal.getitimer(signal.ITIMER_REAL)
    if limit_seconds:  # else a thread counts the time
        signal.setitimer(signal.ITIMER_REAL, limit_seconds, LIMIT_AGAIN_SECONDS)
    return is_set


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        over = item.callspec.params.get("scheme") if hasattr(item, "callspec") else None
        if item.get_closest_marker("clusters") and over not in (None, schemes()[0]):
            item.add_marker(pytest.mark.slow)
        if over == OFI_SCHEME and "conformance" not in item.path.parts:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Free the collector of all that was imported: hundreds of tests have it run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=scheme_params())
def scheme(request) -> str:
    marker = request.node.get_closest_marker("own")
    if marker and request.param in REFERENCES:
        pytest.skip("a promise of dask-fabric, not of distributed's own comms")
    if request.param == OFI_SCHEME:
        request.getfixturevalue("ofi_by_tcp")
    return request.param


@pytest.fixture
def ofi_by_tcp(monkeypatch):
    """libfabric's provider tcp, which no host chooses by itself, here and in child processes."""
    settings = ofi_settings("tcp")
    for name, value in settings.items():
        variable = name.removeprefix("fabric.").upper().replace(".", "__")
        monkeypatch.setenv(f"DASK_FABRIC__{variable}", value)
    with dask.config.set(settings):
        yield


@pytest.fixture(scope="session")
def temporary_security() -> Security:
    return Security.temporary()


@pytest.fixture
def security(scheme, request) -> Security | None:
    """What a cluster of this scheme needs: certificates, or nothing."""
    return request.getfixturevalue("temporary_security") if scheme in TLS_SCHEMES else None


@pytest.fixture
def listen_args(security) -> dict:
    return security.get_listen_args("scheduler") if security else {}


@pytest.fixture
def connect_args(security) -> dict:
    return security.get_connection_args("client") if security else {}


def scheduler_alone() -> LocalCluster:
    """A cluster of fabric:// without workers, for those of a command line; ends with its block."""
    return LocalCluster(n_workers=0, protocol="fabric", **LOCAL_CLUSTER)


@contextlib.contextmanager
def lab():
    """Skip the test if its network of namespaces cannot be made."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no network namespaces here: {exc} {getattr(exc, 'stderr', '')}")


@pytest.fixture
def hosts():
    """Names of two namespaces, ``.1`` and ``.2`` of both networks."""
    with contextlib.ExitStack() as stack:
        with lab():
            names = stack.enter_context(namespaces(2))
            for device, network in zip(("eth0", "eth1"), NETWORKS, strict=True):
                connect(*names, device, network)
        yield names


@pytest.fixture
def triangle():
    """Names of three namespaces, ``.1`` to ``.3`` of 10.99.0, and the devices between each two."""
    with contextlib.ExitStack() as stack:
        with lab():
            names = stack.enter_context(namespaces(3))
            devices = mesh(names, "10.99.0")
        yield names, devices


class Tree:
    """A host made of files: what the kernel shows in ``proc``, ``sys`` and ``dev``, in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: object = "") -> Path:
        """Make a file, with the folders that lead there."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        return file

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link; a target that begins with a slash is one below the root."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / target[1:] if target.startswith("/") else target)

    def pci(self, *bridges: str, **files: object) -> str:
        """Put a device on the bus, below the bridges; returns its folder, from the root."""
        folder = f"sys/devices/{'/'.join(bridges)}"
        for name, text in {"vendor": "0x0000", **files}.items():
            self.write(f"{folder}/{name}", text)
        self.link(f"sys/bus/pci/devices/{bridges[-1]}", f"/{folder}")
        return folder

    def rdma(self, name: str, device: str, number: int = 0, **port: str) -> None:
        """Make an RDMA device with one port, on a PCI device that `pci` made."""
        files = {
            "state": "4: ACTIVE",
            "phys_state": "5: LinkUp",
            "rate": "400 Gb/sec (4X NDR)",
            "link_layer": "InfiniBand",
        }
        for file, text in {**files, **port}.items():
            self.write(f"sys/class/infiniband/{name}/ports/1/{file}", text)
        self.link(f"sys/class/infiniband/{name}/device", f"/{device}")
        self.write(f"sys/class/infiniband_verbs/uverbs{number}/ibdev", name)


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def clean_memory(monkeypatch):
    """Memory as in a new process, before and after: no memory file, no idle slabs.

    What earlier tests left in reference cycles is freed first, so that figures of the pool do not
    change in the middle of a test.
    """
    monkeypatch.setattr(runtime, "_applied", None)  # who opens the next comm configures it again

    def clean():
        gc.collect()
        files.configure(is_enabled=False, threshold_bytes=1 << 20, most_bytes=0)
        pool.trim()

    clean()
    yield
    clean()


@pytest.fixture
def slow_memory():
    made = []

    def make(nbytes):
        made.append(SlowMemory(nbytes))
        return made[-1]

    yield make
    for memory in made:
        memory.arrive()

"""The installed package as a whole: its metadata, and the cost of importing it."""

import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from tests.release.smoke import GROUPS

import dask_fabric

ROOT = Path(__file__).parents[1]
BORDER = {"comm", "gpu", "telemetry", "bench", "cli"}
SCHEMES = {"fabric", "fabric+tcp", "fabric+tls", "fabric+ucx", "fabric+ofi"}


def modules_below_the_border() -> list[str]:
    found = pkgutil.walk_packages(dask_fabric.__path__, "dask_fabric.", onerror=lambda name: None)
    return [m.name for m in found if m.name.split(".")[1] not in BORDER]


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter after these imports."""
    code = "import sys\n" + "".join(f"import {name}\n" for name in modules)
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_version_is_that_of_the_installed_wheel():
    assert dask_fabric.__version__ == version("dask-fabric")


def test_the_installed_wheel_is_under_test():
    assert ROOT / "src" not in Path(dask_fabric.__file__).parents


def test_importing_the_package_imports_no_distributed_and_no_cupy():
    assert not loaded_by("dask_fabric") & {"distributed", "cupy", "numpy", "asyncio"}


def test_nothing_below_the_border_imports_distributed_or_cupy():
    modules = modules_below_the_border()
    assert "dask_fabric.memory.pool" in modules  # the compiled ones are among them
    assert not loaded_by(*modules) & {"distributed", "cupy"}


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_scheme_is_found_through_its_entry_point(scheme):
    from distributed.comm.registry import Backend, get_backend

    (entry,) = entry_points(group="distributed.comm.backends", name=scheme)
    assert issubclass(entry.load(), Backend)
    assert type(get_backend(scheme)) is entry.load()


def test_no_scheme_of_others_is_claimed():
    ours = {
        e.name
        for e in entry_points(group="distributed.comm.backends")
        if e.value.startswith("dask_fabric")
    }
    assert ours == SCHEMES


def test_the_check_of_a_release_expects_as_many_entry_points():
    for group, count in GROUPS.items():
        ours = [one for one in entry_points(group=group) if one.value.startswith("dask_fabric")]
        assert len(ours) == count, group

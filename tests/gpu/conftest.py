"""Stand-ins for GPUs: nvidia-ml-py, and CUDA's driver for other processes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STANDINS = Path(__file__).with_name("standins")
CPUS = sorted(os.sched_getaffinity(0))


def uuid(number: int, kind: str = "GPU") -> str:
    return f"{kind}-{number:08x}-5836-264f-5c26-53d19d212dfe"


@pytest.fixture(autouse=True)
def no_gpus_named(monkeypatch):
    """Remove the user's settings from the environment of these tests."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """A function that puts GPUs into this host, for this process and those that it starts."""
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(str(STANDINS))
    paths = filter(None, (str(STANDINS), os.environ.get("PYTHONPATH")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def put(*described: dict) -> None:
        full = [{"uuid": uuid(number), **gpu} for number, gpu in enumerate(described)]
        monkeypatch.setenv("DASK_FABRIC_TEST_GPUS", json.dumps(full))
        monkeypatch.setenv("DASK_FABRIC_TEST_UUIDS", ",".join(gpu["uuid"] for gpu in full))

    yield put
    sys.modules.pop("pynvml", None)


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory) -> Path:
    """Where the stand-in of CUDA's driver is, for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of CUDA's driver")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", STANDINS / "libcuda.c"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def driver(driver_folder, monkeypatch) -> None:
    """The stand-in of CUDA's driver for the processes that a test starts."""
    if importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is installed here, and does not work with a stand-in of CUDA's driver")
    paths = filter(None, (str(driver_folder), os.environ.get("LD_LIBRARY_PATH")))
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(paths))


@pytest.fixture
def two_gpus(gpus, driver) -> None:
    """Two GPUs, near the first and the last CPU."""
    gpus(
        {"cpus": CPUS[:1], "memory": 1 << 30, "used": 5, "utilization": 7, "own": 3},
        {"cpus": CPUS[-1:], "memory": 1 << 30, "used": 6, "utilization": 8},
    )

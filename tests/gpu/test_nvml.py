"""GPUs as the driver reports them."""

from __future__ import annotations

import sys

import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.gpu.nvml import NoDriverError, list_devices, own_memory_bytes

from .conftest import uuid

PLAIN = {"bus": "00000000:17:00.0", "cpus": [0, 1, 63, 64, 130], "memory": 80 << 30}
INSTANCES = [uuid(7, "MIG"), None, uuid(8, "MIG")]


def names(devices) -> list[str]:
    return [device.visible_name for device in devices]


def test_what_is_known_of_a_gpu(gpus):
    gpus(PLAIN)
    (device,) = list_devices()
    assert (device.visible_name, device.uuid, device.model) == ("0", uuid(0), "NVIDIA Stand-in")
    assert (device.memory_bytes, device.address) == (80 << 30, "00000000:17:00.0")
    assert device.cores == (0, 1, 63, 64, 130)


def test_little_may_be_known(gpus):
    gpus({})
    (device,) = list_devices()
    assert (device.memory_bytes, device.address, device.cores) == (None, None, ())


def test_a_divided_gpu_is_its_instances(gpus):
    gpus(PLAIN, {**PLAIN, "mig": INSTANCES}, {**PLAIN, "mig": [None]})
    found = list_devices()
    assert names(found) == ["0", uuid(7, "MIG"), uuid(8, "MIG")]
    assert found[1].memory_bytes == 40 << 30
    assert found[1].cores == found[0].cores  # what only the whole GPU knows
    assert found[1].address == found[0].address


def test_named_ones_in_their_order(gpus):
    gpus(PLAIN, PLAIN, {**PLAIN, "mig": INSTANCES})
    found = list_devices(["1", "MIG-00000008", uuid(0)])
    assert names(found) == ["1", uuid(8, "MIG"), uuid(0)]  # in full
    assert [device.uuid for device in found] == [uuid(1), uuid(8, "MIG"), uuid(0)]


@pytest.mark.parametrize("name", ["2", "GPU-ffff", "MIG-0", "GPU-0000000"])
def test_names_of_none_and_of_several(gpus, name):
    gpus(PLAIN, PLAIN)
    message = f"{name}, which is .* its GPUs are 0 \\(GPU-00000000-"
    with pytest.raises(UnavailableError, match=message):
        list_devices([name])


def test_one_that_is_named_in_two_ways(gpus):
    gpus(PLAIN, PLAIN)
    with pytest.raises(UnavailableError, match=f"{uuid(1)} twice"):
        list_devices(["0", "1", uuid(1)])


@pytest.mark.parametrize("error", ["NoPermission", "GpuIsLost"])
def test_one_that_may_not_be_used_is_left_out(gpus, error):
    """CUDA leaves it out too, and so counts otherwise than the driver."""
    gpus(PLAIN, {"error": error}, PLAIN)
    assert names(list_devices()) == ["0", uuid(2)]


def test_an_error_of_another_kind_is_told(gpus):
    gpus(PLAIN, {"error": "Unknown"})
    with pytest.raises(UnavailableError, match="driver does not describe a GPU"):
        list_devices()


def test_without_a_driver(gpus):
    with pytest.raises(NoDriverError, match="NVML Shared Library Not Found"):
        list_devices()


def test_without_nvidia_ml_py(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoDriverError, match="nvidia-ml-py is not installed"):
        list_devices()


def test_memory_of_this_process(gpus):
    gpus({"own": 5 << 20}, {}, {"own": 5, "old": True})
    assert own_memory_bytes(uuid(2)) is None
    assert own_memory_bytes(uuid(0)) == 5 << 20
    assert own_memory_bytes(uuid(1)) is None
    assert own_memory_bytes(uuid(5)) is None


def test_the_driver_is_let_go(gpus):
    gpus(PLAIN)
    list_devices()
    with pytest.raises(UnavailableError):
        list_devices(["5"])
    own_memory_bytes(uuid(5))
    assert sys.modules["pynvml"].open_count == 0

"""The runtime of a process: it is found without imports, and a forked child has none."""

from __future__ import annotations

import logging
import os
import sys
import types

import numpy as np
import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.memory import device
from dask_fabric.memory.device import StagedFrame

from ..device import StandIn
from .conftest import run_script


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    """Let each test begin as a process does, whatever is installed here."""
    for name in device._HOLDERS & sys.modules.keys():
        monkeypatch.delitem(sys.modules, name)
    device.configure(False)
    device.configure(None)
    yield
    device.configure(False)
    device.configure(None)


@pytest.fixture
def cuda(monkeypatch):
    """Replaces `dask_fabric.memory.cuda`: gives or raises the content of `found`."""

    def open_runtime(insist):
        cuda.insisted.append(insist)
        found = cuda.found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    cuda = types.SimpleNamespace(open_runtime=open_runtime, found=[], insisted=[])
    monkeypatch.setitem(sys.modules, "dask_fabric.memory.cuda", cuda)
    monkeypatch.setattr("dask_fabric.memory.cuda", cuda, raising=False)
    return cuda


def test_importing_dask_fabric_imports_nothing_for_gpus():
    run_script(
        """
        import sys
        import dask_fabric, dask_fabric.comm.backend, dask_fabric.cli.main
        from dask_fabric.memory import device
        assert device.current() is None
        assert device.kinds() == ("host",)
        assert not {"cupy", "rmm", "torch", "numba", "dask_fabric.memory.cuda"} & set(sys.modules)
        """
    )


def test_nothing_is_looked_for_before_a_library_is_there(cuda, monkeypatch):
    cuda.found = [runtime := StandIn()]
    assert device.current() is None and cuda.insisted == []
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    assert device.current() is runtime
    assert device.current() is runtime and cuda.insisted == [False]
    assert device.kinds() == ("host", "cuda")


def test_what_is_not_in_use_yet_is_asked_again(cuda, monkeypatch):
    cuda.found = [None, runtime := StandIn()]
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert device.current() is None
    assert device.current() is runtime


@pytest.mark.parametrize(
    ("error", "enabled", "level"),
    [
        (UnavailableError("no GPU"), None, logging.INFO),
        (UnavailableError("no GPU"), True, logging.WARNING),
        (OSError("libcuda.so.1: broken"), True, logging.WARNING),
    ],
)
def test_a_failure_is_told_once(cuda, monkeypatch, caplog, error, enabled, level):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    cuda.found = [error]
    device.configure(enabled)
    assert device.current() is None
    assert device.current() is None
    (record,) = caplog.records
    assert record.levelno == level and str(error) in record.getMessage()


def test_configuration_decides(cuda, monkeypatch):
    cuda.found = [runtime := StandIn()]
    device.configure(True)
    assert device.current() is runtime and cuda.insisted == [True]
    device.configure(False)
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    assert device.current() is None


def test_the_same_configuration_again_changes_nothing():
    device.install(runtime := StandIn())
    device.configure(None)
    assert device.current() is runtime


def test_a_forked_child_has_no_runtime():
    device.install(StandIn())
    child = os.fork()
    if child == 0:
        os._exit(0 if device.current() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert device.current() is not None


def test_what_belongs_on_a_device():
    array = StandIn().array(np.arange(3))
    staged = StagedFrame.over(bytearray(b"abc"))
    assert device.span_of(array) is None and not device.belongs_on_device(array)
    assert device.belongs_on_device(staged)
    device.install(array.memory.runtime)
    assert device.span_of(array).nbytes == 24 and device.belongs_on_device(array)
    for frame in (b"abc", bytearray(b"abc"), memoryview(b"abc"), np.arange(3), staged):
        assert device.span_of(frame) is None
    assert not device.belongs_on_device(np.arange(3))


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_a_staged_frame_is_a_buffer_over_its_memory(content):
    memory = bytearray(content)
    staged = StagedFrame.over(memoryview(memory))
    assert bytes(staged) == content and staged.nbytes == len(content)
    memory[:] = b"x" * len(content)
    assert bytes(memoryview(staged)) == memory

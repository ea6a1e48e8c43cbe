"""Arrays that only have DLPack, with stand-ins for CuPy and for their library.

Tests with the real ones need a GPU: see ``docs/gpu.md``.
"""

from __future__ import annotations

import asyncio
import sys
import types

import numpy as np
import pytest
from distributed.comm import connect, listen
from distributed.protocol import deserialize, serialize, to_serialize

from dask_fabric.comm.device.staging_send import FAMILIES
from dask_fabric.comm.serialize import dlpack
from dask_fabric.memory import device

from ..device import Array, StandIn

CPU, CUDA, MANAGED = 1, 2, 13
LIBRARY = "library_of_arrays"


class CupyArray(Array):
    """With what of CuPy's arrays serializing takes."""

    flags = property(lambda self: self.view().flags)
    data = property(lambda self: self)


class Tensor:
    """An array that exposes its memory by DLPack only."""

    kind = CUDA

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.kind, 0

    def __array_namespace__(self):
        return sys.modules[LIBRARY]

    def __reduce__(self):
        return _by_pickle, (self.array.get(),)


def _by_pickle(values):
    return values


@pytest.fixture
def gpu(monkeypatch):
    runtime = StandIn()
    device.install(runtime)
    cupy = types.ModuleType("cupy")
    cupy.from_dlpack = lambda tensor: tensor.array
    cupy.asarray = _of_cupy
    cupy.ascontiguousarray = lambda array: _of_cupy(array.contiguous())
    cupy.ndarray = lambda shape, dtype, memptr, strides=None: CupyArray(
        memptr.memory, shape, dtype, strides, memptr.offset
    )
    library = types.ModuleType(LIBRARY)
    library.from_dlpack = Tensor
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, LIBRARY, library)
    yield runtime
    device.install(None)


def _of_cupy(array):
    return CupyArray(array.memory, array.shape, array.dtype, array.strides, array.offset)


def make(gpu, values):
    return Tensor(_of_cupy(gpu.array(values)))


async def test_over_a_comm_by_the_family_for_device_memory(gpu):
    accepted = asyncio.Queue()
    listener = await listen("fabric+tcp://127.0.0.1", accepted.put)
    a = await connect(listener.contact_address)
    b = await accepted.get()
    cube = np.arange(24_000.0).reshape(20, 30, 40)
    sent = [cube, np.asfortranarray(cube), cube[::2, 1:], np.zeros((0, 3)), np.array(7, "i4")]
    await a.write([to_serialize(make(gpu, values)) for values in sent])
    got = await b.read()
    assert a.statistics()["staged"]["frames_sent"] == len(sent)
    for values, tensor in zip(sent, got, strict=True):
        assert type(tensor) is Tensor and tensor.array.dtype == values.dtype
        np.testing.assert_array_equal(tensor.array.get(), values)
    a.abort()
    b.abort()
    listener.stop()


@pytest.mark.parametrize("kind", [CUDA, MANAGED])
def test_its_memory_is_sent_from_where_it_lies(gpu, kind, monkeypatch):
    monkeypatch.setattr(Tensor, "kind", kind)
    tensor = make(gpu, np.arange(6.0).reshape(2, 3).T)
    header, (frame,) = serialize(tensor, serializers=FAMILIES)
    assert header["serializer"] == dlpack.FAMILY and frame.memory is tensor.array.memory
    assert deserialize(header, [frame]).array.memory is tensor.array.memory


def not_lent(tensor):
    raise BufferError("it wants a gradient")


@pytest.mark.parametrize("why", ["on the host", "spread", "not lent", "no maker", "bfloat16"])
def test_others_are_left_to_the_next_family(gpu, monkeypatch, why):
    tensor = make(gpu, np.zeros(6, "V2" if why == "bfloat16" else "f8"))
    if why == "on the host":
        monkeypatch.setattr(Tensor, "kind", CPU)
    elif why == "spread":
        monkeypatch.setattr(Tensor, "__dlpack_device__", not_lent)
    elif why == "not lent":
        sys.modules["cupy"].from_dlpack = not_lent
    elif why == "no maker":
        del sys.modules[LIBRARY].from_dlpack
    header, _ = serialize(tensor, serializers=FAMILIES)
    assert header["serializer"] == "pickle"


@pytest.mark.parametrize("plain", [object(), 5, np.arange(3), "text"])
def test_what_is_no_array_of_a_gpu_is_not_taken(gpu, plain):
    with pytest.raises(NotImplementedError):
        dlpack.serialize(plain)


@pytest.mark.parametrize("module", ["antigravity", "os.path\0", "", None, ["cupy"]])
def test_a_peer_does_not_choose_what_is_imported(gpu, module):
    header, frames = serialize(make(gpu, np.zeros(3)), serializers=FAMILIES)
    with pytest.raises(ImportError, match="has not imported"):
        deserialize({**header, "module": module}, frames)
    assert module is None or str(module) not in sys.modules

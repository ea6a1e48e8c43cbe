"""Tensors of PyTorch, with a stand-in for torch: which are accepted, and the results.

Tests with the real torch need a GPU: see ``docs/gpu.md``.
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize

from dask_fabric.comm.serialize import torch_tensors


class Tensor:
    """As torch's, over numpy."""

    is_cuda = True
    is_quantized = False
    is_leaf = True
    layout = "strided"
    device = "cuda:0"
    grad = None

    def __init__(self, values, requires_grad=False):
        self.values = np.asarray(values)
        self.requires_grad = requires_grad

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: f"torch.{self.values.dtype}")
    nbytes = property(lambda self: self.values.nbytes)

    def detach(self):
        return Tensor(self.values)

    def resolve_conj(self):
        return self

    resolve_neg = resolve_conj

    def contiguous(self):
        return Tensor(np.ascontiguousarray(self.values).reshape(self.values.shape))

    def reshape(self, shape):
        return Tensor(self.values.reshape(shape))

    def view(self, dtype):
        return Tensor(self.values.view(dtype))

    def requires_grad_(self, requires_grad):
        self.requires_grad = requires_grad
        return self


class Parameter(Tensor):
    def __init__(self, data, requires_grad=True):
        super().__init__(data.values, requires_grad)


@pytest.fixture
def torch(monkeypatch):
    module = types.ModuleType("torch")
    module.Tensor, module.strided = Tensor, "strided"
    module.nn = types.SimpleNamespace(Parameter=Parameter)
    module.dtype = type  # as those of its dtypes are here
    module.uint8, module.float32, module.int64 = np.uint8, np.float32, np.int64
    module.as_tensor = lambda frame, device: frame
    module.empty = lambda shape, dtype, device: Tensor(np.empty(shape, dtype))
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def round_trip(tensor):
    header, frames = torch_tensors.serialize_tensor(tensor)
    for frame in frames:
        assert frame.values.dtype == np.uint8 and frame.values.ndim == 1
    return torch_tensors.deserialize_tensor(header, frames)


@pytest.mark.parametrize(
    "values",
    [np.arange(6), np.arange(6.0, dtype="f4").reshape(2, 3).T, np.float32(3), np.zeros((0, 3))],
    ids=["1", "transposed", "0", "empty"],
)
def test_dense_tensors(torch, values):
    torch.float64 = np.float64
    got = round_trip(Tensor(values))
    assert got.values.dtype == np.asarray(values).dtype and not got.requires_grad
    np.testing.assert_array_equal(got.values, values)


def test_parameters_and_gradients(torch):
    parameter = Parameter(Tensor(np.arange(3, dtype="f4")))
    parameter.grad = Tensor(np.ones(3, "f4"))
    got = round_trip(parameter)
    assert type(got) is Parameter and got.requires_grad
    assert list(got.values) == [0, 1, 2] and list(got.grad.values) == [1, 1, 1]


def test_a_peer_names_a_dtype_and_nothing_else(torch):
    header, frames = torch_tensors.serialize_tensor(Tensor(np.arange(3)))
    with pytest.raises(TypeError, match=r"torch\.empty is no dtype"):
        torch_tensors.deserialize_tensor({**header, "dtype": "empty"}, frames)


@pytest.mark.parametrize(
    ("name", "value"), [("is_cuda", False), ("layout", "sparse_coo"), ("is_quantized", True)]
)
def test_others_are_left_to_the_next_family(torch, name, value):
    tensor = Tensor(np.arange(3))
    setattr(tensor, name, value)
    with pytest.raises(NotImplementedError):
        torch_tensors.serialize_tensor(tensor)


@pytest.fixture
def empty_dispatch(monkeypatch):
    for dispatch in (cuda_serialize, cuda_deserialize):
        monkeypatch.setattr(dispatch, "_lazy", {})
        monkeypatch.setattr(dispatch, "_lookup", {})


def test_they_are_registered_for_when_torch_is_there(torch, empty_dispatch, monkeypatch):
    torch_tensors.register()
    monkeypatch.setattr(Tensor, "__module__", "torch")
    assert cuda_serialize.dispatch(Tensor) is torch_tensors.serialize_tensor
    assert cuda_deserialize.dispatch(Parameter) is torch_tensors.deserialize_tensor


def test_nobody_elses_is_replaced(torch, empty_dispatch, monkeypatch):
    monkeypatch.setattr(Tensor, "__module__", "torch")
    cuda_serialize.register_lazy("torch", lambda: cuda_serialize.register(Tensor, len))
    torch_tensors.register()
    assert cuda_serialize.dispatch(Tensor) is len
    with pytest.raises(TypeError):
        cuda_deserialize.dispatch(Tensor)

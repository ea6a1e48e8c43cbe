"""Serializers of PyTorch tensors on a GPU; distributed has none for device memory."""

from __future__ import annotations

import sys
from typing import Any

from distributed.protocol.cuda import cuda_deserialize, cuda_serialize

_MODULE = "torch"


def register() -> None:
    """Register the serializers, unless there are others; effective once torch is imported."""
    # Private attribute: there is no other way to see what would be replaced.
    if _MODULE not in getattr(cuda_serialize, "_lazy", {}):
        cuda_serialize.register_lazy(_MODULE, _register_serializer)
        cuda_deserialize.register_lazy(_MODULE, _register_deserializer)


def _register_serializer() -> None:
    tensor = sys.modules[_MODULE].Tensor
    if tensor not in getattr(cuda_serialize, "_lookup", {}):
        cuda_serialize.register(tensor, serialize_tensor)


def _register_deserializer() -> None:
    tensor = sys.modules[_MODULE].Tensor
    if tensor not in getattr(cuda_deserialize, "_lookup", {}):
        cuda_deserialize.register(tensor, deserialize_tensor)


def serialize_tensor(tensor: Any) -> tuple[dict, list]:
    """Serialize a dense tensor on a GPU, with its gradient; leave others to the next family."""
    torch = sys.modules[_MODULE]
    if not tensor.is_cuda or tensor.layout is not torch.strided or tensor.is_quantized:
        raise NotImplementedError(f"a tensor on {tensor.device}, {tensor.layout}")
    data = tensor.detach().resolve_conj().resolve_neg().contiguous()
    header = {
        "dtype": str(data.dtype).removeprefix("torch."),
        "shape": tuple(data.shape),
        "requires-grad": tensor.requires_grad,
        "is-parameter": isinstance(tensor, torch.nn.Parameter),
    }
    frames = [data.reshape(-1).view(torch.uint8)]
    # Only leaves have a gradient; torch warns if others are asked for it.
    if tensor.is_leaf and tensor.grad is not None:
        header["gradient"], gradient_frames = serialize_tensor(tensor.grad)
        frames += gradient_frames
    return header, frames


def deserialize_tensor(header: dict, frames: list) -> Any:
    """Make a tensor over the memory of the first frame."""
    torch = sys.modules[_MODULE]
    dtype = getattr(torch, header["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch.{header['dtype']} is no dtype")
    if frames[0].nbytes:
        data = torch.as_tensor(frames[0], device="cuda").view(dtype).reshape(header["shape"])
    else:
        data = torch.empty(header["shape"], dtype=dtype, device="cuda")
    if header["is-parameter"]:
        tensor = torch.nn.Parameter(data, header["requires-grad"])
    else:
        tensor = data.requires_grad_(header["requires-grad"])
    if "gradient" in header:
        tensor.grad = deserialize_tensor(header["gradient"], frames[1:])
    return tensor

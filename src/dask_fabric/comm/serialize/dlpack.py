"""Serialization by DLPack, of GPU arrays that distributed's family ``cuda`` does not know.

It is a family of its own: a fallback registered in the family ``cuda`` would also be called for
objects of other comms in this process. The receiver makes the array by ``from_dlpack`` of the
module that it belongs to, for instance ``jax.numpy``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from distributed.protocol.serialize import register_serialization_family

from dask_fabric.comm.serialize.cupy_arrays import deserialize_array, serialize_array

FAMILY = "dlpack"
# kDLCUDA and kDLCUDAManaged of DLPack's DLDeviceType.
_CUDA_KINDS = (2, 13)
# Other dtypes (bfloat16) have no name that the receiver understands.
_PLAIN_KINDS = "biufc"
# Modules of such arrays that may be imported because a peer sent one.
_IMPORTED_MODULES = ("cupy", "jax.numpy", "torch")


def register() -> None:
    """Register the family."""
    register_serialization_family(FAMILY, serialize, deserialize)


def serialize(x: Any) -> tuple[dict, list]:
    """Serialize an array from its own memory; leave other objects to the next family."""
    module = _module_that_makes(x)
    try:
        array = sys.modules["cupy"].from_dlpack(x)
    except Exception as error:  # libraries raise various errors for arrays that they do not export
        raise NotImplementedError(f"not by DLPack: {error}") from error
    if array.dtype.kind not in _PLAIN_KINDS:
        raise NotImplementedError(f"not by DLPack: {array.dtype}")
    header, frames = serialize_array(array)
    return {"sub-header": header, "module": module, "compression": (False,)}, frames


def deserialize(header: dict, frames: list) -> Any:
    """Make an array over a frame of device memory."""
    make = _module_of(header["module"]).from_dlpack
    return make(deserialize_array(header["sub-header"], frames))


def _module_of(name: Any) -> ModuleType:
    """Give the module of a name that a peer sent; the peer must not choose what is imported."""
    if not isinstance(name, str) or (name not in sys.modules and name not in _IMPORTED_MODULES):
        raise ImportError(
            f"an array on a GPU is of the module {name!r:.80}, which this process has not "
            "imported: import it where such arrays are to arrive (on workers by --preload)"
        )
    return import_module(name)


def _module_that_makes(x: Any) -> str:
    """Name the module whose ``from_dlpack`` makes arrays like *x*, which must be on a GPU."""
    try:
        kind, _ = x.__dlpack_device__()
        namespace = getattr(x, "__array_namespace__", None)
        name = namespace().__name__ if namespace else type(x).__module__.partition(".")[0]
    except Exception as error:  # not an array, or one on several GPUs
        raise NotImplementedError(f"not by DLPack: {error}") from error
    if kind not in _CUDA_KINDS or not hasattr(sys.modules.get(name), "from_dlpack"):
        raise NotImplementedError(f"not by DLPack: a {type(x).__name__} of {name}")
    return name

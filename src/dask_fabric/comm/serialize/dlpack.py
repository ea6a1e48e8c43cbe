"""Arrays on a GPU that no serializer of distributed's family ``cuda`` knows, by DLPack.

They are a family of their own, so that nothing changes for other comms in this process: what is
registered for all objects there would be asked for each of theirs. Who receives such an array makes
it by the ``from_dlpack`` of the module that it came from, as JAX's arrays have one.
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
# Others have no name that says to the receiver what they are (bfloat16).
_PLAIN_KINDS = "biufc"
# What makes such arrays and may be imported because a peer sent one.
_IMPORTED_MODULES = ("cupy", "jax.numpy", "torch")


def register() -> None:
    """Register the family."""
    register_serialization_family(FAMILY, serialize, deserialize)


def serialize(x: Any) -> tuple[dict, list]:
    """Serialize an array from its own memory; leave what is none to the next family."""
    module = _module_that_makes(x)
    try:
        array = sys.modules["cupy"].from_dlpack(x)
    except Exception as error:  # whatever a library raises for what it does not lend out
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
    """Give the module of a name that a peer sent, which must not import what it likes."""
    if not isinstance(name, str) or (name not in sys.modules and name not in _IMPORTED_MODULES):
        raise ImportError(
            f"an array on a GPU is of the module {name!r:.80}, which this process has not "
            "imported: import it where such arrays are to arrive (on workers by --preload)"
        )
    return import_module(name)


def _module_that_makes(x: Any) -> str:
    """Name the module whose ``from_dlpack`` gives arrays as this one, which is on a GPU."""
    try:
        kind, _ = x.__dlpack_device__()
        namespace = getattr(x, "__array_namespace__", None)
        name = namespace().__name__ if namespace else type(x).__module__.partition(".")[0]
    except Exception as error:  # no array, or one that is spread over several GPUs
        raise NotImplementedError(f"not by DLPack: {error}") from error
    if kind not in _CUDA_KINDS or not hasattr(sys.modules.get(name), "from_dlpack"):
        raise NotImplementedError(f"not by DLPack: a {type(x).__name__} of {name}")
    return name

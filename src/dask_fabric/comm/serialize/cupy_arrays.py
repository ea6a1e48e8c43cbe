"""Serializers of CuPy arrays, used where distributed's own are missing.

Distributed's cannot be imported without Numba or RMM, and lack some classes. The format is the
same, so that a peer may use either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize
from distributed.protocol.serialize import dask_deserialize, dask_serialize, register_generic

_MODULES = ("cupy", "cupyx")
_DISPATCHES = (cuda_serialize, cuda_deserialize, dask_serialize, dask_deserialize)


def register() -> None:
    """Register the serializers, to take effect once CuPy is imported, after distributed's."""
    for dispatch in _DISPATCHES:
        for module in _MODULES:
            # Private attribute: there is no other way to wrap distributed's registration.
            theirs = getattr(dispatch, "_lazy", {}).get(module)
            if theirs is not None and getattr(theirs, "func", None) is not _register:
                dispatch.register_lazy(module, partial(_register, theirs))


def _register(theirs: Callable[[], Any]) -> None:
    try:
        theirs()
    except Exception:  # an ImportError, or whatever a broken Numba raises
        _register_arrays()
    _register_sparse()


def _register_arrays() -> None:
    array = sys.modules["cupy"].ndarray
    cuda_serialize.register(array, serialize_array)
    cuda_deserialize.register(array, deserialize_array)
    dask_serialize.register(array, serialize_array_to_host)
    dask_deserialize.register(array, deserialize_array_from_host)


def _register_sparse() -> None:
    """Register the sparse classes that distributed lacks: all, or only the arrays of CuPy 14."""
    try:
        from cupyx.cusparse import MatDescriptor

        kinds = sparse_kinds()
    except Exception:  # no cuSPARSE, so no sparse matrices
        return
    for kind in kinds:
        if kind not in getattr(cuda_serialize, "_lookup", {}):
            register_generic(kind, "cuda", cuda_serialize, cuda_deserialize)
            register_generic(kind, "dask", dask_serialize, dask_deserialize)
    for dispatch in (cuda_deserialize, dask_deserialize):  # distributed's format contains them
        dispatch.register(MatDescriptor, _make_descriptor(MatDescriptor))


def sparse_kinds() -> list[type]:
    """Give the base classes of sparse objects: matrices, and since CuPy 14 arrays."""
    from cupyx.scipy import sparse

    return [kind for kind in (sparse.spmatrix, getattr(sparse, "sparray", None)) if kind]


def _make_descriptor(kind: Any) -> Callable[[dict, list], Any]:
    return lambda header, frames: kind.create()


def serialize_array(array: Any) -> tuple[dict, list]:
    """Serialize an array as bytes of its own memory; if not contiguous, it is copied on the GPU."""
    cupy = sys.modules["cupy"]
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = cupy.ascontiguousarray(array)
    header = {"shape": array.shape, "typestr": array.dtype.str, "strides": array.strides}
    return header, [cupy.ndarray((array.nbytes,), np.uint8, memptr=array.data)]


def deserialize_array(header: dict, frames: list) -> Any:
    """Make an array over a frame of device memory."""
    cupy = sys.modules["cupy"]
    (frame,) = frames
    return cupy.ndarray(
        tuple(header["shape"]),
        header["typestr"],
        memptr=cupy.asarray(frame).data,
        strides=tuple(header["strides"]),
    )


def serialize_array_to_host(array: Any) -> tuple[dict, list]:
    """Serialize an array as bytes in host memory: to spill it, or for a peer without a GPU."""
    header, (frame,) = serialize_array(array)
    return header, [memoryview(sys.modules["cupy"].asnumpy(frame))]


def deserialize_array_from_host(header: dict, frames: list) -> Any:
    """Make an array in new device memory."""
    (frame,) = frames
    return deserialize_array(header, [sys.modules["cupy"].asarray(np.frombuffer(frame, np.uint8))])

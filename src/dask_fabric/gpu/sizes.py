"""Sizes of device arrays for Dask's memory management, for libraries that Dask does not know.

It knows CuPy, RMM and Numba. Arrays of other libraries would count as empty, and never be spilled.
"""

from __future__ import annotations

from typing import Any

from dask.sizeof import sizeof


def register() -> None:
    """Register the sizes of arrays of PyTorch and JAX, and of CuPy's sparse matrices."""
    sizeof.register_lazy("torch", _register_torch)
    sizeof.register_lazy("cupyx", _register_sparse)
    for module in ("jax", "jaxlib"):  # the class of arrays has moved between them
        sizeof.register_lazy(module, _register_jax)


def _register_torch() -> None:
    import torch

    sizeof.register(torch.Tensor, _size_of_tensor)


def _size_of_tensor(tensor: Any) -> int:
    return tensor.element_size() * tensor.nelement()


def _register_jax() -> None:
    import jax

    sizeof.register(jax.Array, _size_of_array)


def _size_of_array(array: Any) -> int:
    return int(array.nbytes)


def _register_sparse() -> None:
    from dask_fabric.comm.serialize.cupy_arrays import sparse_kinds

    for kind in sparse_kinds():
        sizeof.register(kind, _size_of_parts)


def _size_of_parts(matrix: Any) -> int:
    return sum(sizeof(part) for part in vars(matrix).values())

"""Sizes of device arrays for Dask's memory management, where Dask itself does not know them.

It knows those of CuPy, RMM and Numba. Without a size an array counts as nothing, and a worker
spills none of them.
"""

from __future__ import annotations

from typing import Any

from dask.sizeof import sizeof


def register() -> None:
    """Let Dask know the size of tensors of PyTorch, once it meets one, in this process."""
    sizeof.register_lazy("torch", _register_torch)


def _register_torch() -> None:
    import torch

    sizeof.register(torch.Tensor, _size_of_tensor)


def _size_of_tensor(tensor: Any) -> int:
    return tensor.element_size() * tensor.nelement()

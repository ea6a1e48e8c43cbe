"""Sizes of device arrays, as Dask's memory management counts them."""

from __future__ import annotations

import subprocess
import sys

TORCH = """if 1:
    class Tensor:
        def element_size(self): return 4
        def nelement(self): return 1000
"""


def test_tensors_count_in_a_process_that_wants_it(tmp_path):
    """In a process of its own: what is registered stays."""
    (tmp_path / "torch.py").write_text(TORCH)
    code = """if 1:
        import sys
        from dask.sizeof import sizeof
        from dask_fabric.gpu import sizes
        sizes.register()
        before = "torch" in sys.modules
        import torch
        print(before, sizeof(torch.Tensor()), sizeof([torch.Tensor()]) > 4000)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "False 4000 True\n"


JAX = """if 1:
    class Array:
        nbytes = 4000
    class ArrayImpl(Array):
        pass
    ArrayImpl.__module__ = "jaxlib._jax"
"""


def test_arrays_of_jax_count(tmp_path):
    (tmp_path / "jax.py").write_text(JAX)
    code = """if 1:
        from dask.sizeof import sizeof
        from dask_fabric.gpu import sizes
        sizes.register()
        import jax
        print(sizeof(jax.ArrayImpl()))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "4000\n"


SPARSE = """if 1:
    class spmatrix:
        def __init__(self, *parts): self.data, self.indices = parts
    class sparray:
        __init__ = spmatrix.__init__
    class csr_matrix(spmatrix): pass
    class csr_array(sparray): pass
"""


def test_sparse_matrices_of_cupy_count_with_all_their_parts(tmp_path):
    for name, text in {"__init__": "", "scipy/__init__": "", "scipy/sparse": SPARSE}.items():
        file = tmp_path / f"cupyx/{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    code = """if 1:
        import numpy as np
        from dask.sizeof import sizeof
        from dask_fabric.gpu import sizes
        sizes.register()
        from cupyx.scipy import sparse
        for kind in (sparse.csr_matrix, sparse.csr_array):
            print(sizeof(kind(np.zeros(1000), np.zeros(500))))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "12000\n12000\n"

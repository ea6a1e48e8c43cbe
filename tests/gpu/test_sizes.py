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

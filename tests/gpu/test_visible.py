"""Values of CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.gpu.visible import names_of, turned


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1,2", ("0", "1", "2")),
        (" 3 , GPU-9baca7f5 ", ("3", "GPU-9baca7f5")),
        ("MIG-41b3359c-e721-56e5-8009-12e5797ed514", ("MIG-41b3359c-e721-56e5-8009-12e5797ed514",)),
        (2, ("2",)),
        ([1, 0], ("1", "0")),
        ((), ()),
        ("", ()),
        ("-1", ()),
        ("1,-1,0", ("1",)),
        ("NoDevFiles", ()),  # of Slurm
    ],
)
def test_names(value, expected):
    assert names_of(value) == expected


@pytest.mark.parametrize("value", ["gpu0", "0;1", "0x1", "1.0", "0,all", "0,0", "GPU-a,GPU-a"])
def test_what_names_no_gpu(value):
    with pytest.raises(UnavailableError, match=r"^CUDA_VISIBLE_DEVICES names "):
        names_of(value)


def test_each_is_first_once():
    names = ("0", "GPU-b", "2")
    assert [turned(names, first) for first in range(3)] == ["0,GPU-b,2", "GPU-b,2,0", "2,0,GPU-b"]

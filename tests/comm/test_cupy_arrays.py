"""CuPy's arrays without Numba and RMM, with a stand-in for CuPy, in processes of their own.

Processes, because registrations stay. Whether the real CuPy works needs a GPU to test.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CUPY = """if 1:
    import numpy as np

    __version__ = "14"
    dtype = np.dtype

    class ndarray:
        '''As CuPy's, over numpy: memory, and nothing that is a buffer.'''

        def __init__(self, shape, dtype=float, memptr=None, strides=None):
            self.data = memptr
            self.values = np.ndarray(shape, dtype, memptr, strides=strides)

        shape = property(lambda self: self.values.shape)
        strides = property(lambda self: self.values.strides)
        dtype = property(lambda self: self.values.dtype)
        nbytes = property(lambda self: self.values.nbytes)
        flags = property(lambda self: self.values.flags)
        __cuda_array_interface__ = property(lambda self: self.values.__array_interface__)

    ndarray.__module__ = "cupy"

    def asarray(values):
        if isinstance(values, ndarray):
            return values
        values = np.array(values, order="K")
        flat = values.ravel(order="K")
        return ndarray(values.shape, values.dtype, flat.data.cast("B"), values.strides)

    def ascontiguousarray(array):
        return asarray(np.ascontiguousarray(array.values))

    def asnumpy(array):
        return array.values.copy()
"""
SPARSE = """if 1:
    class spmatrix:
        pass
    class sparray:
        pass
    class csr_matrix(spmatrix):
        def __init__(self, data, descriptor):
            self.data, self._descr, self._shape = data, descriptor, (2, 3)
    class csr_array(sparray):
        __init__ = csr_matrix.__init__
"""
CUSPARSE = """if 1:
    class MatDescriptor:
        @classmethod
        def create(cls):
            return cls()
        def __reduce__(self):
            return self.create, ()
"""
NUMBA = """if 1:
    import types
    class DeviceNDArray:
        pass
    devicearray = types.SimpleNamespace(DeviceNDArray=DeviceNDArray)
"""
BEGIN = """
if 1:
    import sys
    sys.modules["rmm"] = None
    if "without" in sys.argv:
        sys.modules["numba"] = None
    import numpy as np
    from distributed.protocol import deserialize, serialize
    from distributed.protocol.cuda import cuda_serialize
    import dask_fabric.comm.serialize.distributed
    import cupy
    FAMILIES = ("cuda", "dask", "pickle")
"""


@pytest.fixture
def run(tmp_path):
    """Run a program where CuPy, and perhaps Numba, is installed; give its output."""
    files = {
        "cupy.py": CUPY,
        "cupyx/__init__.py": "",
        "cupyx/cusparse.py": CUSPARSE,
        "cupyx/scipy/__init__.py": "",
        "cupyx/scipy/sparse.py": SPARSE,
        "numba/__init__.py": "",
        "numba/cuda.py": NUMBA,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(program: str, numba: str = "without") -> str:
        paths = (str(tmp_path), *filter(None, (os.environ.get("PYTHONPATH"),)))
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + program, numba],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("families", ["FAMILIES", "None"], ids=["to a device", "to the host"])
def test_arrays_of_every_layout(run, families):
    said = run(f"""
    cube = np.arange(24.0).reshape(2, 3, 4)
    for values in (cube, np.asfortranarray(cube), cube[:, 1:2].transpose(2, 0, 1), np.zeros((0, 3)),
                   np.array(5, "i2")):
        array = cupy.asarray(values)
        header, frames = serialize(array, serializers={families})
        host = [isinstance(frame, memoryview) for frame in frames]
        assert host == [{families} is None], (header, host)
        got = deserialize(header, frames)
        assert type(got) is cupy.ndarray and got.dtype == values.dtype
        np.testing.assert_array_equal(got.values, values)
        assert not values.flags.forc or got.strides == values.strides
    print("well")
    """)
    assert said == "well\n"


def test_an_array_in_no_order_is_copied_to_one(run):
    said = run("""
    whole = np.arange(24.0).reshape(4, 6)
    array = cupy.asarray(whole)
    array.values = whole[::2, ::2]
    header, frames = serialize(array, serializers=FAMILIES)
    got = deserialize(header, frames)
    np.testing.assert_array_equal(got.values, whole[::2, ::2])
    assert got.flags.c_contiguous and frames[0].nbytes == 48
    print("well")
    """)
    assert said == "well\n"


@pytest.mark.parametrize("numba", ["with", "without"])
def test_sparse_matrices_and_arrays(run, numba):
    program = """
    from cupyx.cusparse import MatDescriptor
    from cupyx.scipy import sparse
    for kind in (sparse.csr_matrix, sparse.csr_array):
        matrix = kind(cupy.asarray(np.arange(3.0)), MatDescriptor())
        header, frames = serialize(matrix, serializers=FAMILIES)
        assert any(isinstance(frame, cupy.ndarray) for frame in frames), kind
        got = deserialize(header, frames)
        assert type(got) is kind and got._shape == (2, 3)
        assert type(got._descr) is MatDescriptor
        assert list(got.data.values) == [0, 1, 2]
    print("well")
    """
    assert run(program, numba) == "well\n"


def test_what_distributed_sends_is_understood(run):
    """A peer with Numba has distributed's serializers, with more in the header."""
    said = run("""
    import pickle
    from cupyx.cusparse import MatDescriptor
    values = np.arange(6.0).reshape(2, 3)
    array = cupy.asarray(values)
    interface = {**values.__array_interface__, "stream": 1, "version": 3}
    header = {
        "serializer": "cuda", "compression": (False,), "type-serialized": pickle.dumps(type(array)),
        "sub-header": {**interface, "strides": (24, 8)},
    }
    got = deserialize(header, [cupy.asarray(values.ravel().view("u1"))])
    np.testing.assert_array_equal(got.values, values)
    header = {"serializer": "cuda", "type-serialized": pickle.dumps(MatDescriptor)}
    assert type(deserialize({**header, "sub-header": {}}, [])) is MatDescriptor
    print("well")
    """)
    assert said == "well\n"


@pytest.mark.parametrize(
    ("numba", "module"),
    [("with", "distributed.protocol.cupy"), ("without", "dask_fabric.comm.serialize.cupy_arrays")],
)
def test_distributeds_own_are_used_where_they_can_be(run, numba, module):
    assert (
        run("    print(cuda_serialize.dispatch(cupy.ndarray).__module__)", numba) == f"{module}\n"
    )

"""Arrays of CuPy from worker to worker, bit for bit as numpy has them."""

from __future__ import annotations

import importlib.util
import math
import os

import numpy as np
import pytest

from .conftest import SECONDS

MB = 1_000_000


def numbers(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype="u1")


# Each makes an array of numpy or CuPy, by the module that it is given.
SHAPES = {
    "bytes": lambda xp: xp.asarray(numbers(1000)),
    "inline": lambda xp: xp.asarray(numbers(10)),
    "empty": lambda xp: xp.empty((0, 3), "f4"),
    "scalar": lambda xp: xp.asarray(1.5),
    "C order": lambda xp: xp.asarray(numbers(MB).view("f8").reshape(250, 500)),
    "F order": lambda xp: xp.asfortranarray(xp.asarray(numbers(MB).view("f8").reshape(250, 500))),
    "transposed": lambda xp: xp.asarray(numbers(MB).view("i4").reshape(250, 1000)).T,
    "sliced": lambda xp: xp.asarray(numbers(MB).reshape(1000, 1000))[100:900:3, ::-2],
    "rows": lambda xp: xp.asarray(numbers(MB).reshape(1000, 1000))[10:500],
    "booleans": lambda xp: xp.asarray(numbers(MB)) > 7,
    "complex": lambda xp: xp.asarray(numbers(MB).view("i4")).astype("c16"),
    "halves": lambda xp: xp.asarray(numbers(MB).view("i2")).astype("f2"),
    "four dimensions": lambda xp: xp.asarray(numbers(MB).reshape(10, 100, 10, 100)),
    "one chunk and a byte": lambda xp: xp.asarray(numbers((8 << 20) + 1)),
    "large": lambda xp: xp.asarray(numbers(200 * MB)),
}


def make(name: str):
    import cupy

    return SHAPES[name](cupy)


def look(array) -> tuple[np.ndarray, str, bool, bool]:
    """What has arrived: its content, its kind and the order of its memory."""
    import cupy

    flags = array.flags
    return cupy.asnumpy(array), type(array).__module__, flags.c_contiguous, flags.f_contiguous


# Where CuPy has them: the arrays came with CuPy 14.
SPARSE = ("csr_matrix", "csc_matrix", "coo_matrix", "csr_array")


def all_sparse(array) -> dict:
    from cupyx.scipy import sparse

    return {kind: getattr(sparse, kind)(array) for kind in SPARSE if hasattr(sparse, kind)}


def dense(made: dict) -> list[tuple[str, str, np.ndarray]]:
    return [(kind, type(one).__name__, one.toarray().get()) for kind, one in made.items()]


# Arrays of other libraries, made of numpy's and looked at as such: None where it has no GPU.


def to_torch(values):
    import torch

    return torch.as_tensor(values, device="cuda") if torch.cuda.is_available() else None


def to_numba(values):
    from numba import cuda

    return cuda.to_device(values) if cuda.is_available() else None


def to_jax(values):
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # there are others on this GPU
    import jax

    is_there = jax.default_backend() == "gpu"
    return jax.device_put(values) if is_there else None


def look_at(array) -> tuple[str, np.ndarray] | None:
    if array is None:
        return None
    module = type(array).__module__.partition(".")[0]
    if module == "torch":
        return f"{module} on {array.device.type}", array.cpu().numpy()
    if module == "numba":
        return module, array.copy_to_host()
    return f"jax on {array.device.platform}", np.asarray(array)


def moved(workers, make, *arguments, look):
    """The result of looking, on the second worker, at what the first has made."""
    client, (source, target) = workers
    made = client.submit(make, *arguments, workers=[source], pure=False)
    return client.submit(look, made, workers=[target], pure=False).result(timeout=SECONDS)


@pytest.mark.parametrize("name", SHAPES)
def test_as_numpy_has_it(workers, name):
    expected = SHAPES[name](np)
    content, module, in_c, in_f = moved(workers, make, name, look=look)
    assert module.startswith("cupy")
    assert (content.dtype, content.shape) == (expected.dtype, expected.shape)
    assert content.tobytes() == expected.tobytes()
    if expected.flags.c_contiguous or expected.flags.f_contiguous:
        assert (in_c, in_f) == (expected.flags.c_contiguous, expected.flags.f_contiguous)


def test_sparse_matrices(workers):
    def make():
        import cupy

        return all_sparse(cupy.eye(500, dtype="f4"))

    found = moved(workers, make, look=dense)
    assert len(found) >= 3
    for kind, name, content in found:
        assert name == kind
        np.testing.assert_array_equal(content, np.eye(500, dtype="f4"))


OTHERS = {
    "torch": (to_torch, "torch on cuda"),
    "numba": (to_numba, "numba"),
    "jax": (to_jax, "jax on gpu"),
}


@pytest.mark.parametrize("library", OTHERS)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (500, 1000)], ids=str)
def test_arrays_of_other_libraries(workers, library, shape):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    to_library, kind = OTHERS[library]
    values = numbers(math.prod(shape) * 4).view("f4").reshape(shape)
    found = moved(workers, to_library, values, look=look_at)
    if found is None:
        pytest.skip(f"{library} uses no GPU here")
    assert found[0] == kind
    assert (found[1].shape, found[1].dtype) == (shape, values.dtype)
    assert found[1].tobytes() == values.tobytes()


def test_many_in_one_message(workers):
    def make():
        import cupy

        return {
            "device": [cupy.full(1000 * n, n) for n in range(30)],
            "host": [np.full(1000 * n, n) for n in range(30)],
        }

    def check(mixed):
        return [
            bool((one == n).all()) and one.size == 1000 * n
            for kind in mixed.values()
            for n, one in enumerate(kind)
        ]

    assert all(moved(workers, make, look=check))


def test_an_array_that_arrived_can_be_written_and_sent_on(workers):
    client, (source, target) = workers

    def add(array):
        array += 1
        return array

    one = client.submit(make, "bytes", workers=[source], pure=False)
    two = client.submit(lambda x: add(x.copy()), one, workers=[target], pure=False)
    three = client.submit(lambda x: add(x.copy()), two, workers=[source], pure=False)
    found = client.submit(lambda x: x.get(), three, workers=[target], pure=False)
    np.testing.assert_array_equal(found.result(timeout=SECONDS), numbers(1000) + np.uint8(2))


def test_both_ways_at_once(workers):
    client, both = workers
    made = [client.submit(make, "large", workers=[one], pure=False) for one in both]
    crossed = zip(made, reversed(both), strict=True)
    sums = [
        client.submit(lambda x: int(x.sum(dtype="i8")), x, workers=[one], pure=False)
        for x, one in crossed
    ]
    assert client.gather(sums) == [int(numbers(200 * MB).sum(dtype="i8"))] * 2

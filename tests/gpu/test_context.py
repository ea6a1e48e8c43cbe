"""The CUDA context, in processes of their own with a stand-in of CUDA's driver."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import uuid

NO_DRIVER = "NVIDIA's driver is missing"


def run(code: str) -> str:
    """What a process prints, or the last line of its error."""
    preamble = "from dask_fabric.gpu.context import *\n"
    done = subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True)
    return (done.stdout or done.stderr.strip().rpartition("\n")[2]).strip()


@pytest.fixture
def two(gpus, driver):
    gpus({}, {})


def test_on_the_first_visible_gpu(two, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    code = f"""if 1:
        import ctypes
        before = has_context()
        make_context({uuid(1)!r})
        current = ctypes.c_void_p()
        ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(current))
        print(before, has_context(), bool(current))
    """
    assert run(code) == "False True True"


@pytest.mark.parametrize("names", ["0,1", "GPU-00000000"])
def test_another_gpu_is_first(two, monkeypatch, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    said = run(f"make_context({uuid(1)!r})")
    assert f"sees in this worker is {uuid(0)[4:]} and not {uuid(1)}" in said
    assert said.endswith("before the worker starts use CUDA")


def test_the_variable_came_too_late(two):
    """As by a library that uses CUDA when it is imported, before the nanny sets the variable."""
    code = f"""if 1:
        import os
        has_context()
        os.environ["CUDA_VISIBLE_DEVICES"] = "1"
        make_context({uuid(1)!r})
    """
    assert "and not" in run(code)


def test_a_context_that_exists_already_is_told(two):
    code = f"""if 1:
        import logging
        logging.basicConfig(stream=__import__("sys").stdout)
        make_context({uuid(0)!r})
        make_context({uuid(0)!r})
    """
    assert run(code).count("created a CUDA context before the worker started") == 1


def test_no_gpu_is_visible(two, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA sees no GPU in this process" in run(f"make_context({uuid(0)!r})")
    assert run("print(has_context())") == "False"


def test_without_a_driver(monkeypatch):
    code = "import ctypes\ndef fail(name): raise OSError(f'{name}: cannot open')\n"
    code += "ctypes.CDLL = fail\nprint(has_context())\n"
    assert run(code) == "False"
    assert NO_DRIVER in run(code.replace("print(has_context())", "make_context('GPU-0')"))


def test_importing_makes_no_context(two):
    code = "import dask_fabric.gpu.cluster, dask_fabric.comm.backend\nprint(has_context())"
    assert run(code) == "False"


class TestPreload:
    """The module for workers that others start."""

    CHILD = """if 1:
        import concurrent.futures, multiprocessing
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as child:
            child.submit(exec, "import dask_fabric.gpu.preload").result()
            print(child.submit(has_context).result())
    """

    @pytest.mark.parametrize("names", [f"{uuid(1)},0", None])
    def test_in_a_worker_of_a_nanny(self, two, monkeypatch, names):
        if names is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        assert run(self.CHILD) == "True"

    def test_in_a_command(self, two):
        assert run("import dask_fabric.gpu.preload\nprint(has_context())") == "False"

    def test_in_a_worker_without_a_nanny(self, two):
        code = "import dask_fabric.gpu.preload as preload\npreload.dask_setup(None)\n"
        assert run(code + "print(has_context())") == "True"

    def test_none_is_named(self, two, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "names no GPU for this worker" in run(self.CHILD)

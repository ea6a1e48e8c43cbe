"""The pool of a worker, with stand-ins of CuPy and RMM."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import dask.config
import pytest

from dask_fabric import config
from dask_fabric.errors import ConfigError, UnavailableError
from dask_fabric.gpu.allocator import Pool, usage_bytes
from dask_fabric.gpu.launch import pool_of

DEVICE_BYTES = 1 << 30


class MemoryPool:
    """As CuPy's: what is given back stays."""

    def __init__(self) -> None:
        self.total = 0

    def malloc(self, size: int) -> object:
        if size > DEVICE_BYTES:
            raise MemoryError(f"out of memory allocating {size} bytes")
        self.total += size
        return object()

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return self.total


def install(monkeypatch, name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def cupy(monkeypatch):
    pool = MemoryPool()
    chosen: list[object] = []
    cuda = SimpleNamespace(set_allocator=chosen.append)
    return install(
        monkeypatch, "cupy", get_default_memory_pool=lambda: pool, cuda=cuda, chosen=chosen
    )


@pytest.fixture
def rmm(monkeypatch):
    asked: list[dict] = []
    install(monkeypatch, "rmm.allocators")
    install(monkeypatch, "rmm.allocators.cupy", rmm_cupy_allocator="rmm's")
    return install(monkeypatch, "rmm", reinitialize=lambda **how: asked.append(how), asked=asked)


@pytest.fixture
def neither(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "rmm", None)


@pytest.mark.parametrize(
    ("size", "expected"), [(None, 0), (1 << 20, 1 << 20), (1000, 512), (0.25, 1 << 28)]
)
def test_a_pool_of_cupy(cupy, size, expected):
    Pool("cupy", size).set_up(DEVICE_BYTES)
    assert usage_bytes() == (0, expected)
    assert cupy.chosen == []  # it is CuPy's own allocator already


@pytest.mark.parametrize("size", [1 << 20, 0.5])
def test_a_pool_of_rmm(cupy, rmm, size):
    Pool("rmm", size).set_up(2 << 20)
    assert rmm.asked == [{"pool_allocator": True, "initial_pool_size": 1 << 20}]
    assert cupy.chosen == ["rmm's"] and usage_bytes() == (0, 0)


def test_rmm_without_a_pool(cupy, rmm):
    Pool("rmm", None).set_up(DEVICE_BYTES)
    assert rmm.asked == [] and cupy.chosen == ["rmm's"]


def test_more_than_there_is(cupy):
    with pytest.raises(UnavailableError, match=r"cannot provide 2.00 GiB .* fabric\.gpu\.pool"):
        Pool("cupy", 2 << 30).set_up(DEVICE_BYTES)


def test_a_fraction_of_nobody_knows_what(cupy):
    with pytest.raises(UnavailableError, match="give the pool's size in bytes"):
        Pool("cupy", 0.5).set_up(None)


@pytest.mark.parametrize("allocator", ["cupy", "rmm"])
def test_a_package_is_missing(neither, allocator):
    with pytest.raises(
        UnavailableError, match=f"a pool of {allocator}, .* pip install {allocator}"
    ):
        Pool(allocator, 1 << 20).set_up(DEVICE_BYTES)


def test_cupy_is_not_needed_without_a_size(monkeypatch):
    monkeypatch.setattr("dask_fabric.gpu.allocator.find_spec", lambda name: None)
    Pool("cupy", None).set_up(DEVICE_BYTES)


def test_a_broken_cupy_that_nobody_asked_for_is_told(monkeypatch, caplog, tmp_path):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cupy.py").write_text("raise RuntimeError('no libnvrtc')")
    Pool("cupy", None).set_up(DEVICE_BYTES)
    assert "cannot send or receive GPU memory: CuPy fails: no libnvrtc" in caplog.text


def test_what_is_asked_for():
    with dask.config.set({"fabric.gpu.pool": "1 GiB"}):
        assert pool_of(None, None) == Pool("cupy", 1 << 30)
        assert pool_of("0.5", None) == Pool("cupy", 0.5)
        assert pool_of(None, 100) == Pool("rmm", 100)
        assert config.load().gpu_pool_size == 1 << 30
    with pytest.raises(UnavailableError, match="not both"):
        pool_of(1, 1)
    with pytest.raises(ConfigError, match=r"fabric\.gpu\.pool is 'all'"):
        pool_of("all", None)

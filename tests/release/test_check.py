"""The script behind ``make release-check``, without a build."""

from __future__ import annotations

import tarfile

import pytest
from tests.release import check

MODULES = ["dask_fabric/wire/frames", "dask_fabric/memory/pool"]
SDIST = dict.fromkeys((*check.SDIST_FILES, *(f"cython/{name}.pyx" for name in MODULES)), 1)
WHEEL = {
    **dict.fromkeys((f"dask_fabric/{name}" for name in check.WHEEL_FILES), 1),
    **dict.fromkeys((f"{name}.pyi" for name in MODULES), 1),
    **dict.fromkeys((f"{name}.cpython-311-x86_64-linux-gnu.so" for name in MODULES), 1),
    "dask_fabric-0.1.dist-info/licenses/LICENSE": 1,
}


def test_nothing_is_wrong_with_what_is_complete():
    assert not [*check.sdist_faults(SDIST, MODULES), *check.wheel_faults(WHEEL, MODULES)]


@pytest.mark.parametrize("name", sorted(SDIST))
def test_a_file_that_an_sdist_lacks(name):
    files = {key: value for key, value in SDIST.items() if key != name}
    assert list(check.sdist_faults(files, MODULES)) == [f"lacks {name}"]


@pytest.mark.parametrize("name", sorted(WHEEL))
def test_a_file_that_a_wheel_lacks(name):
    files = {key: value for key, value in WHEEL.items() if key != name}
    (fault,) = check.wheel_faults(files, MODULES)
    assert fault.startswith("lacks")


@pytest.mark.parametrize(
    "name",
    [
        "tests/__pycache__/x.cpython-311.pyc",
        ".pytest_cache/README.md",
        "build/x",
        ".ci/run",
        ".github/workflows/tests.yml",
        "src/dask_fabric/wire/frames.so",
        ".venv-3.10-lowest/stamp",
    ],
)
def test_junk_in_an_sdist(name):
    assert list(check.sdist_faults({**SDIST, name: 1}, MODULES)) == [f"contains {name}"]


@pytest.mark.parametrize(
    "name", ["tests/test_x.py", "dask_fabric/wire/frames.pyx", "dask_fabric/__pycache__/x.pyc"]
)
def test_junk_in_a_wheel(name):
    assert list(check.wheel_faults({**WHEEL, name: 1}, MODULES)) == [f"contains {name}"]


def test_an_archive_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SDIST_BYTES_LIMIT", 10)
    archive = tmp_path / "dask_fabric-0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(check.ROOT / "LICENSE", "dask_fabric-0.1/LICENSE")
    with pytest.raises(check.ReleaseError, match=r"has [\d,]+ bytes") as raised:
        check.checked(archive)
    assert "dask_fabric-0.1.tar.gz lacks PKG-INFO" in str(raised.value)


def test_the_oldest_glibc_of_a_wheel():
    name = "dask_fabric-0.1-cp311-cp311-manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl"
    assert check.glibc(name) == (2, 17)

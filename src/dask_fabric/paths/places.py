"""Where a library may be on this host."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM_FOLDERS = ("/usr/lib64", "/usr/lib", "/usr/local/lib64", "/usr/local/lib")


@dataclass(frozen=True)
class Candidate:
    """A place where a library may be: a path to open, or the soname for the system to find."""

    source: str
    path: str


def search_path(
    soname: str, variables: Iterable[str], folders: Iterable[str], wheels: Iterable[Path]
) -> Iterator[Candidate]:
    """List the places of a library, in order; the first may not exist.

    Parameters
    ----------
    soname : str
    variables : iterable of str
        Set by environment modules to a prefix that the library is installed in.
    folders : iterable of str
        Folders of the system, and of vendors.
    wheels : iterable of Path
        Folders of packages from PyPI.
    """
    # The loader searches LD_LIBRARY_PATH, as it was at process start, and the cache of ldconfig.
    yield Candidate("LD_LIBRARY_PATH or ld.so.cache", soname)
    environment = os.environ
    for name in variables:
        for folder in ("lib", "lib64") if environment.get(name) else ():
            yield from in_folder(soname, f"${name}", Path(environment[name], folder))
    if environment.get("CONDA_PREFIX"):
        place = Path(environment["CONDA_PREFIX"], "lib")
        yield from in_folder(soname, "$CONDA_PREFIX", place)
    multiarch = sysconfig.get_config_var("MULTIARCH")
    own = (f"/usr/lib/{multiarch}",) if multiarch else ()
    for one in (*own, *folders):
        yield from in_folder(soname, "system directory", Path(one))
    for wheel in wheels:
        yield from in_folder(soname, "PyPI wheel", wheel)


def in_folder(soname: str, source: str, folder: Path) -> Iterator[Candidate]:
    """Give the library in a folder, if it is there."""
    path = folder / soname
    if path.exists():
        yield Candidate(source, str(path))


def library_file(path: Path, soname: str) -> Path:
    """Give the library that *path* means: a file, or the folder that it is in."""
    return path / soname if path.is_dir() else path


def mapped_files(pattern: str) -> list[str]:
    """Give the files that this process has mapped and whose paths match the *pattern*."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    except OSError:
        return []
    found = re.findall(rf"^\S+ \S+ \S+ \S+ \S+ +(/.*/{pattern}\S*)", maps, re.MULTILINE)
    return list(dict.fromkeys(found))

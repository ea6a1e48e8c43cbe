"""The inputs that are kept: in the repository, and while fuzzing.

``tests/corpus/TARGET.zip`` has inputs that together run every branch that was ever reached, as far
as known. ``tests/corpus/faults/TARGET-NAME`` is an input that has found a fault, which was fixed.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests/corpus"
FAULTS = KEPT / "faults"
_DATE = (1980, 1, 1, 0, 0, 0)  # the same inputs make the same file


def name_of(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()[:16]


def kept(target: str) -> list[bytes]:
    """Give the inputs of the repository for a target."""
    inputs = []
    archive = KEPT / f"{target}.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as file:
            inputs = [file.read(name) for name in file.namelist()]
    return inputs + [path.read_bytes() for path in sorted(FAULTS.glob(f"{target}-*"))]


def keep(target: str, inputs: Iterable[bytes]) -> int:
    """Write the inputs of a target to the repository; give the size of the file."""
    KEPT.mkdir(exist_ok=True)
    archive = KEPT / f"{target}.zip"
    by_name = {name_of(data): data for data in inputs}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in sorted(by_name.items()):
            file.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)
    return archive.stat().st_size


def unpack(inputs: Iterable[bytes], folder: Path) -> None:
    """Write inputs as files of a folder, which libFuzzer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / name_of(data)).write_bytes(data)


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.exists() else []

"""Write a stub in ``src/`` for each compiled module, with its docstrings.

So ``src/`` shows the whole package to readers, editors and mypy. ``python cython/stubs.py`` writes
them; a test says whether they are fresh.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent
PACKAGE = SOURCES.parent / "src" / "dask_fabric"
TOOL = ("--include-dir", ".", "--exclude-attribution", "--resolve-ctypedef-aliases")


def stubs() -> Iterator[tuple[Path, str]]:
    """Give each stub's path, and what it is to hold."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stubgen_pyx", ".", "--output-dir", folder, *TOOL]
        subprocess.run(command, cwd=SOURCES, check=True, capture_output=True)
        for source in sorted(SOURCES.glob("dask_fabric/**/*.pyx")):
            name = source.relative_to(SOURCES / "dask_fabric").with_suffix(".pyi")
            yield PACKAGE / name, Path(folder, name).read_text()


def plain(text: str) -> str:
    """Say what mypy understands: to Cython any value is an ``object``, to Python it is ``Any``."""
    text = re.sub(r"((?:->|:|=|\[|,)\s*)object\b", r"\1Any", text)
    text = re.sub(r"^ +def __dealloc__\(self\): \.\.\.\n", "", text, flags=re.MULTILINE)
    if re.search(r"\bAny\b", text) and not re.search(r"import .*\bAny\b", text):
        head = re.match(r'(?:""".*?"""\n)?', text, re.DOTALL)
        text = f"{head[0]}from typing import Any\n{text[head.end() :]}"
    return text


def formatted(path: Path, text: str) -> str:
    for command in (["check", "--fix", "--select", "I,F401", "--quiet"], ["format"]):
        full = [Path(sys.executable).with_name("ruff"), *command, "--stdin-filename", path, "-"]
        text = subprocess.run(full, input=text, capture_output=True, text=True, check=True).stdout
    return text


def fresh() -> dict[Path, str]:
    """Give the text of each stub by its path."""
    return {path: formatted(path, plain(text)) for path, text in stubs()}


if __name__ == "__main__":
    for path, text in fresh().items():
        path.write_text(text)

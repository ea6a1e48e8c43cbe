"""Builds of the compiled modules with something added by the compiler, each in its own venv.

The venv that users' wheels are tested in is not touched, nothing is redone without need, and
``make clean`` removes all of it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES = ("wire", "codec", "memory", "paths", "engine", "conformance", "faults")


def suites(named: Sequence[str]) -> list[str]:
    """Give what pytest shall run: what was named, or the suites of the compiled modules."""
    return list(named) or [f"tests/{name}" for name in SUITES]


def prepare(name: str, options: Mapping[str, str]) -> Path:
    """Make ``.venv-<name>``, or bring it up to date; returns its interpreter.

    Parameters
    ----------
    options : mapping
        What CMake is told, such as ``FABRIC_COVERAGE``.
    """
    folder = ROOT / f".venv-{name}"
    python = folder / "bin/python"
    if not python.exists():
        run([sys.executable, "-m", "venv", folder])
    pyproject = ROOT / "pyproject.toml"
    state = hashlib.sha256(pyproject.read_bytes()).hexdigest()
    stamp = folder / "stamp"
    settings = [f"build-dir={build_folder(name)}", "install.strip=false"]
    settings += [f"cmake.define.{option}={value}" for option, value in options.items()]
    install = [python, "-m", "pip", "install", "--quiet"]
    own = [*install, *(f"--config-settings={setting}" for setting in settings)]
    if not stamp.exists() or stamp.read_text() != state:
        run([*own, ".[test]"])
        stamp.write_text(state)
    else:
        run([*own, "--no-deps", "--force-reinstall", "."])
    return python


def build_folder(name: str) -> Path:
    """Give the folder of what the compiler wrote, relative to the root of the tree."""
    return Path("build", name)


def run(command: Iterable[object]) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    subprocess.run(words, check=True, cwd=ROOT)

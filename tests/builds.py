"""Builds of the compiled modules with counters or checks, each in a venv of its own.

The venv for testing the users' wheel is not touched. Nothing is rebuilt without need, and ``make
clean`` removes all of it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES = ("wire", "codec", "memory", "paths", "engine", "conformance", "faults", "fuzzing")


def suites(named: Sequence[str]) -> list[str]:
    """Give the arguments for pytest: *named*, or by default the suites of the compiled modules."""
    return list(named) or [f"tests/{name}" for name in SUITES]


def prepare(name: str, options: Mapping[str, str], extras: str = "test,ofi") -> Path:
    """Create or update ``.venv-<name>``, and return its interpreter.

    Parameters
    ----------
    options : mapping
        Definitions for CMake, such as ``FABRIC_COVERAGE``.
    extras : str
        What to install besides, of the extras in pyproject.toml.
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
        run([*own, f".[{extras}]"])
        stamp.write_text(state)
    else:
        run([*own, "--no-deps", "--force-reinstall", "."])
    return python


def build_folder(name: str) -> Path:
    """Give the build folder, relative to the root of the repository."""
    return Path("build", name)


def run(command: Iterable[object]) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    subprocess.run(words, check=True, cwd=ROOT)

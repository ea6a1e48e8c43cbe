"""Write a stub in ``src/`` for each compiled module, with its docstrings.

So ``src/`` shows the whole package to readers, editors and mypy. ``python cython/stubs.py`` writes
them; ``tests/test_stubs.py`` says whether they are fresh.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from docstring_types import annotated

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parent
PACKAGE = ROOT / "src" / "dask_fabric"
TOOL = ("--include-dir", ".", "--exclude-attribution", "--resolve-ctypedef-aliases")
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def raw() -> dict[str, str]:
    """Give what the tool makes of each compiled module, by the module's name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stubgen_pyx", ".", "--output-dir", folder, *TOOL]
        subprocess.run(command, cwd=SOURCES, check=True, capture_output=True)
        found = {}
        for source in sorted(SOURCES.glob("dask_fabric/**/*.pyx")):
            name = source.relative_to(SOURCES).with_suffix("")
            stub = Path(folder, *name.parts[1:]).with_suffix(".pyi")
            found[".".join(name.parts)] = stub.read_text()
        return found


def is_of_c(node: ast.stmt) -> bool:
    """Whether a declaration is one of C, a struct or a ctypedef, which Python does not see."""
    if isinstance(node, ast.ClassDef):
        return [ast.unparse(base) for base in node.bases] == ["TypedDict"]
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"


def declared(tree: ast.Module) -> set[str]:
    """Give the names that a stub declares, of those that there are at run time."""
    names = set()
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            found = [node.name]
        elif isinstance(node, ast.Assign):
            found = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found = [node.target.id]
        else:
            continue
        if not is_of_c(node):
            names.update(found)
    return names


def constants(tree: ast.Module, names: Mapping[str, set[str]]) -> Iterator[str]:
    """Give what a stub imports although it has no name in Python: types and numbers of C."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dask_fabric."):
            there = names.get(node.module or "", set())
            yield from (alias.name for alias in node.names if alias.name not in there)


def without_c(text: str, names: Mapping[str, set[str]]) -> str:
    """Leave out what only C has; a number of C is named by an ellipsis, or by its type."""
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    for node in tree.body:
        if is_of_c(node):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    text = "".join(lines)
    for name in constants(tree, names):
        text = re.sub(rf"(?m)^(\w+) = {name}$", r"\1: int", text)
        text = re.sub(rf"\b(\w+(?:: int)?) ?= ?{name}\b", r"\1=...", text)
        text = re.sub(rf"(?m)^(from .* import .*)\b{name}\b(, )?", r"\1", text)
    text = re.sub(r"(?m)^from .* import *$\n", "", text)
    return re.sub(r"(?m)^(from .*?),? *$", r"\1", text)


def plain(text: str) -> str:
    """Say what mypy understands: to Cython any value is an ``object``, to Python it is ``Any``."""
    prose = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
        for number in range(node.lineno - 1, node.end_lineno)
    }
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if number not in prose:
            line = re.sub(r"((?:->|:|=|\[|,)\s*)object\b", r"\1Any", line)
            line = re.sub(r"^(\w+) = \[\]$", r"\1: list[Any]", line)
            lines[number] = re.sub(r"^ +def __dealloc__\(self\): \.\.\.\n", "", line)
    text = "".join(lines)
    if re.search(r"\bAny\b", text) and not re.search(r"import .*\bAny\b", text):
        head = re.match(r'(?:""".*?"""\n)?', text, re.DOTALL)
        text = f"{head[0]}from typing import Any\n{text[head.end() :]}"
    return text


def formatted(path: Path, text: str) -> str:
    config = ("--config", ROOT / "pyproject.toml")
    for command in (["check", "--fix", "--select", "I,F401,UP", "--quiet"], ["format"]):
        full = [Path(sys.executable).with_name("ruff"), *command, *config]
        done = subprocess.run(
            [*full, "--stdin-filename", path, "-"],
            cwd=ROOT,
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        text = done.stdout
    return text


def fresh() -> dict[Path, str]:
    """Give the text of each stub by its path."""
    texts = raw()
    names = {module: declared(ast.parse(text)) for module, text in texts.items()}
    errors = declared(ast.parse((PACKAGE / "errors.py").read_text()))
    homes = {**names, "dask_fabric.errors": errors}
    home = {name: module for module, there in homes.items() for name in there if name[0].isupper()}
    stubs = {}
    for module, text in texts.items():
        path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".pyi")
        stubs[path] = formatted(path, annotated(plain(without_c(text, names)), home))
    return stubs


if __name__ == "__main__":
    for path, text in fresh().items():
        path.write_text(text)

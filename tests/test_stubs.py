"""The stubs of compiled modules are up to date with their sources."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
STUBS = sorted(SOURCES.glob("dask_fabric/**/*.pyi"))
NAMES = [".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in STUBS]
GENERATOR = ROOT / "cython" / "stubs.py"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def tree_of(name: str) -> ast.Module:
    return ast.parse((SOURCES / name.replace(".", "/")).with_suffix(".pyi").read_text())


def declared(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """The public names of a stub, or of a class in it, with what declares them."""
    for node in body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            name = node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        else:
            continue
        if not name.startswith("_"):
            yield name, node


def made_here(thing: Any, module: str) -> bool:
    """Whether a module has a class or function of its own, and did not import it."""
    return getattr(thing, "__module__", None) == module and (
        isinstance(thing, type) or callable(thing)
    )


def missing_members(name: str, node: ast.ClassDef, kind: type) -> list[str]:
    told = dict(declared(node.body))
    own = {one for one in vars(kind) if not one.startswith("_")}
    lacking = [f"{name}.{one} is not there" for one in told if not hasattr(kind, one)]
    return lacking + [f"{name}.{one} is not in the stub" for one in own - told.keys()]


def docstring(name: str, thing: Any) -> str:
    """What the source says; Cython puts a line with the signature before it."""
    text = inspect.cleandoc(thing.__doc__ or "")
    signature, _, rest = text.partition("\n\n")
    return rest if re.match(rf"(\w+\.)*{name}\(", signature) else text


def documented(body: list[ast.stmt], owner: Any, of: str) -> Iterator[tuple[str, str, str]]:
    """Each public class and function: its name, and its docstring in the stub and at run time."""
    for name, node in declared(body):
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            thing = getattr(owner, name)
            yield f"{of}.{name}", ast.get_docstring(node) or "", docstring(name, thing)
            if isinstance(node, ast.ClassDef):
                yield from documented(node.body, thing, f"{of}.{name}")


@pytest.mark.timeout(600)  # all of Cython's parser, for all modules
def test_every_compiled_module_has_a_fresh_stub(tmp_path, monkeypatch):
    """Wherever the generator is called from."""
    pytest.importorskip("stubgen_pyx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(GENERATOR.parent)
    fresh = runpy.run_path(os.path.relpath(GENERATOR))["fresh"]()
    assert {*fresh} == {*STUBS}
    stale = [
        str(path.relative_to(ROOT)) for path, text in fresh.items() if path.read_text() != text
    ]
    assert not stale, "run: python cython/stubs.py"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int", "int"),
        ("bytes or memoryview", "bytes | memoryview"),
        ("tuple of int or None", "tuple[int, ...] | None"),
        ("tuple of (bytes or int, list of bytes)", "tuple[bytes | int, list[bytes]]"),
        ("list of (tuple of (int, str)) or Control", "list[tuple[int, str]] | Control"),
        ("dict of str to dict of str to str", "dict[str, dict[str, str]]"),
        ("asyncio.AbstractEventLoop", "asyncio.AbstractEventLoop"),
        ("iterable of (str, str)", "Iterable[tuple[str, str]]"),
        ("list of contiguous buffers", None),
        ("int or whatever it is", None),
        ('{"message", "raise"}', None),
    ],
)
def test_the_words_of_docstrings_are_types(text, expected):
    script = runpy.run_path(str(GENERATOR.with_name("docstring_types.py")))
    assert script["type_of"](text) == expected


def test_every_source_has_a_stub():
    sources = GENERATOR.parent.glob("dask_fabric/**/*.pyx")
    names = {path.relative_to(GENERATOR.parent).with_suffix(".pyi") for path in sources}
    assert names == {path.relative_to(SOURCES) for path in STUBS}


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_declares_what_its_module_has(name):
    module = importlib.import_module(name)
    told = dict(declared(tree_of(name).body))
    assert [one for one in told if not hasattr(module, one)] == []
    own = {one for one, thing in vars(module).items() if made_here(thing, name)}
    assert {one for one in own if not one.startswith("_")} <= told.keys()
    wrong = []
    for one, node in told.items():
        if isinstance(node, ast.ClassDef):
            wrong += missing_members(one, node, getattr(module, one))
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_imports_only_what_there_is(name):
    """Stubs leave out what only C sees: structs, and the numbers of an enum."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dask_fabric"):
            module = importlib.import_module(node.module)
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_has_the_docstrings_of_its_module(name):
    module, tree = importlib.import_module(name), tree_of(name)
    assert (ast.get_docstring(tree) or "") == inspect.cleandoc(module.__doc__ or "")
    wrong = [of for of, stub, own in documented(tree.body, module, name) if stub != own]
    assert wrong == []


def test_there_is_something_to_check():
    name = "dask_fabric.engine.channel"
    told = documented(tree_of(name).body, importlib.import_module(name), name)
    assert len(STUBS) > 40 and sum(bool(own) for _, _, own in told) > 20

"""Types for stubs out of docstrings, for what the source gives none.

Cython takes an annotation for a conversion or a check at run time, so compiled functions have few.
Their docstrings name the types of parameters and results in a few words, which are read here.
What is said in other words stays without a type.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

WORDS = {
    **{name: name for name in ("None", "bool", "bytes", "float", "int", "memoryview", "str")},
    "awaitable": "Awaitable[Any]",
    "callable": "Callable[..., Any]",
    "dict": "dict[str, Any]",
    "list": "list[Any]",
    "tuple": "tuple[Any, ...]",
}
FORMS = {
    "iterable": "Iterable[{}]",
    "list": "list[{}]",
    "sequence": "Sequence[{}]",
    "tuple": "tuple[{}, ...]",
}
ABSTRACT = ("Any", "Awaitable", "Callable", "Iterable", "Sequence")
HEAD = f"from typing import Any\nfrom collections.abc import {', '.join(ABSTRACT[1:])}\n"
ABOVE = "dask_fabric.comm."  # no compiled module imports from there, and so no stub does
OPTIONAL = ", optional"


def type_of(text: str) -> str | None:
    """Give the type that is named, as Python writes it; None where none is.

    Parameters
    ----------
    text : str
        Such as ``bytes or None``, ``dict of str to int`` and ``tuple of (int, a.module.Class)``.
    """
    parts = _split(text, " or ")
    if len(parts) > 1:
        return _joined(parts, "{}", " | ")
    if match := re.fullmatch(r"(tuple of )?\((.*)\)", text):
        parts = _split(match[2], ", ")
        return _joined(parts, "tuple[{}]" if match[1] or len(parts) > 1 else "{}")
    if match := re.fullmatch(r"dict of (\w+) to (.*)", text):
        return _joined(match.groups(), "dict[{}]")
    if match := re.fullmatch(r"(\w+) of (.*)", text):
        return _joined([match[2]], FORMS[match[1]]) if match[1] in FORMS else None
    is_class = re.fullmatch(r"(\w+\.)+\w+|[A-Z]\w+", text) and text not in WORDS
    return text if is_class else WORDS.get(text)


def _joined(texts: Iterable[str], form: str, between: str = ", ") -> str | None:
    types = [type_of(text) for text in texts]
    return None if None in types else form.format(between.join(map(str, types)))


def _split(text: str, between: str) -> list[str]:
    """Split a text, but not within parentheses."""
    parts, depth = [""], 0
    for piece in re.split(rf"(\(|\)|{between})", text):
        depth += (piece == "(") - (piece == ")")
        if piece == between and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _section(docstring: str, title: str) -> list[str]:
    """Give the lines of a section that are not indented."""
    match = re.search(rf"(?ms)^{title}\n-+\n(.*?)(?=\n\n\S[^\n]*\n---|\Z)", docstring)
    return re.findall(r"(?m)^\S.*", match[1]) if match else []


def annotated(text: str, home: Mapping[str, str]) -> str:
    """Give a stub with the types of its docstrings.

    Parameters
    ----------
    text : str
        The stub.
    home : mapping of str to str
        The modules of classes that a docstring may name alone, by their names.
    """
    tree = ast.parse(text)
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    known = Known({name: module for name, module in home.items() if name not in own}, own)
    lines = text.splitlines(keepends=True)
    for node, docstring in _functions(tree.body, ""):
        if _annotate(node, docstring, known):
            _write(node, lines)
    prose = tree.body[0] if ast.get_docstring(tree) else None
    lines.insert(prose.end_lineno if prose else 0, "".join(["\n", HEAD, *sorted(known.imports)]))
    return "".join(lines)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(body: Sequence[ast.stmt], of_class: str) -> Iterator[tuple[Function, str]]:
    """Yield each function with the docstring that tells of its parameters."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, ast.get_docstring(node) or "")
        elif isinstance(node, Function):
            yield node, of_class if node.name == "__init__" else ast.get_docstring(node) or ""


class Known:
    """The classes that may be named, and what is to be imported of them."""

    def __init__(self, home: Mapping[str, str], own: set[str]) -> None:
        self.imports: set[str] = set()
        self._home = home
        self._own = own | {*dir(builtins), *ABSTRACT}

    def annotation(self, text: str) -> ast.expr | None:
        """Give a type where all classes in it are known."""
        found = type_of(text)
        for name in re.findall(r"(?:\w+\.)+\w+|[A-Z]\w+", found or ""):
            module, _, alone = name.rpartition(".")
            module = module or self._home.get(name, "")
            if module.startswith(ABOVE):
                return None
            if module.startswith("dask_fabric."):
                self.imports.add(f"from {module} import {alone}\n")
                found = str(found).replace(name, alone)
            elif module:
                self.imports.add(f"import {module}\n")
            elif name not in self._own:
                return None
        return ast.parse(found, mode="eval").body if found else None


def _annotate(node: Function, docstring: str, known: Known) -> bool:
    """Put the types into the tree, and say whether there are any."""
    documented: dict[str, str] = {}
    for line in _section(docstring, "Parameters"):
        names, _, text = line.partition(" : ")
        documented |= dict.fromkeys(names.split(", "), text)
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults = dict(zip(reversed(plain), reversed(node.args.defaults), strict=False))
    defaults |= dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    found = False
    for arg in (*plain, *node.args.kwonlyargs):
        text = documented.get(arg.arg, "")
        if getattr(defaults.get(arg), "value", "") is None:
            text = text.replace(OPTIONAL, " or None")
        if arg.annotation is None:
            arg.annotation = known.annotation(text.removesuffix(OPTIONAL))
            found = found or arg.annotation is not None
    results = [line.rpartition(" : ")[2] for line in _section(docstring, "Returns")]
    if results and node.returns is None and node.name != "__init__":
        text = results[0] if len(results) == 1 else f"({', '.join(results)})"
        node.returns = known.annotation(text)
        found = found or node.returns is not None
    return found


def _write(node: Function, lines: list[str]) -> None:
    """Write the first line of a function anew."""
    begin, body = node.lineno - 1, node.body[0].lineno - 1
    rest = " ...\n" if body == begin else "\n"
    node.body, node.decorator_list = [ast.Pass()], []
    header = ast.unparse(node).splitlines()[0]
    end = max(body, begin + 1)
    lines[begin:end] = [f"{' ' * node.col_offset}{header}{rest}", *[""] * (end - begin - 1)]

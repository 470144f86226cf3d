"""Docstrings in the Python sources of a wheel, one document per function or class."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.reference_run.packages import read_files

_SKIPPED = re.compile(
    r"(^|/)(tests?|testing|_vendor\w*|vendor|third_?party|examples)/|\.dist-info/"
)
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Entry(NamedTuple):
    """Documentation of one definition: qualified name, path, and the parts of its text."""

    name: str
    path: str
    parts: list[str]


def read_docstrings(archive: Path, minimum: int) -> Iterator[Entry]:
    """Yield the modules, functions and classes with docstrings of `minimum` characters or more.

    A class comes with the docstrings of its public methods.
    """
    for path, content in read_files(archive, r"\.py$"):
        # Parsing takes most of the time: skip files without text that could be used.
        if (
            _SKIPPED.search(path)
            or max(map(len, re.split(rb'"""|\'\'\'', content)[1:-1] or [b""])) < 200
        ):
            continue
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError):
            continue  # a template, or Python of another version
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name, parts in definitions(tree, module):
            if sum(map(len, parts)) >= minimum:
                yield Entry(name, path, parts)


def definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, list[str]]]:
    """Yield qualified names and documentation of a module and what it defines publicly."""
    if docstring := ast.get_docstring(tree):
        yield module, [f"{module}\n\n{docstring}\n"]
    for node in tree.body:
        if isinstance(node, _FUNCTION) and (docstring := ast.get_docstring(node)):
            yield f"{module}.{node.name}", [_entry(f"{module}.{node.name}", node, docstring)]
        elif isinstance(node, ast.ClassDef):
            parts = [f"class {module}.{node.name}\n\n{ast.get_docstring(node) or ''}\n"]
            for inner in node.body:
                if not isinstance(inner, _FUNCTION) or inner.name.startswith("_"):
                    continue
                if docstring := ast.get_docstring(inner):
                    parts.append("\n" + _entry(f"{node.name}.{inner.name}", inner, docstring))
            yield f"{module}.{node.name}", parts


def _entry(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str) -> str:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    listed = ", ".join(n for n in names if n not in {"self", "cls"})
    return f"{name}({listed})\n\n{inspect.cleandoc(docstring)}\n"

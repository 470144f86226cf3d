"""Texts of installed packages, of three kinds: documentation, source code and prose."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.formats import python_docs

SMALLEST, LARGEST = 2_000, 100_000
"""Shorter and longer texts are left out (characters)."""

COPIED = ("license", "licence", "copying", "notice", "authors", "third")
"""Words in names of files that many packages share."""


def installed(packages: Sequence[str]) -> list[str]:
    """Return the packages whose sources are found; a line names each of the others."""
    found = []
    for package in packages:
        try:
            found += python_docs.packages("benchmark", package)
        except CorpusError as error:
            print(f"left out: {error}", flush=True)
    return found


def documentation(packages: Sequence[str]) -> list[str]:
    """Return the long docstrings of packages, or of modules within them."""
    return [doc.text for name in installed(packages) for doc in python_docs.read(name)]


def code(packages: Sequence[str], limit: int) -> list[str]:
    """Return source files without their docstrings, at most `limit`, alike from every package."""
    names = dict.fromkeys(name.partition(".")[0] for name in installed(packages))
    return _in_turn([_sources(name) for name in names], limit)


def prose(limit: int) -> list[str]:
    """Return descriptions and documents that installed packages bring, at most `limit`."""
    folder = Path(sysconfig.get_path("purelib"))
    descriptions = (_body(path) for path in sorted(folder.glob("*.dist-info/METADATA")))
    documents = (
        path.read_text(encoding="utf-8", errors="ignore")
        for ending in ("rst", "md", "txt")
        for path in sorted(folder.rglob(f"*.{ending}"))
        if not any(word in path.name.lower() for word in COPIED) and path.stat().st_size < LARGEST
    )
    return _in_turn([_fitting(descriptions), _fitting(documents)], limit)


def _fitting(texts: Iterator[str]) -> Iterator[str]:
    return (text for text in texts if SMALLEST <= len(text) <= LARGEST)


def _in_turn(sources: Sequence[Iterator[str]], limit: int) -> list[str]:
    """Return distinct texts, one of each source after the other, until all have ended."""
    texts: dict[str, None] = {}
    running = list(sources)
    while running and len(texts) < limit:
        for source in list(running):
            text = next(source, None)
            if text is None:
                running.remove(source)
            else:
                texts[text] = None
    return list(texts)[:limit]


def _body(path: Path) -> str:
    """Return the description in the metadata of a package: what follows its fields."""
    return path.read_text(encoding="utf-8", errors="ignore").partition("\n\n")[2]


def _sources(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations or [] if spec else []
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    tests = {"test", "tests", "testing"}
    return _fitting(_without_docstrings(p) for p in paths if not tests & set(p.parts))


def _without_docstrings(path: Path) -> str:
    """Return a source file without its docstrings, or nothing if it can't be read."""
    try:
        content = path.read_text(encoding="utf-8")
        tree = ast.parse(content)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ""
    lines = content.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node) is not None and first is not None:
                end = first.end_lineno or first.lineno
                lines[first.lineno - 1 : end] = [""] * (end - first.lineno + 1)
    return "\n".join(line for line in lines if line.strip())

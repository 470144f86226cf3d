"""The built-in source `python_docs`: documentation inside the installed Python packages.

A real corpus that needs no network: the texts of `pydoc_data.topics` and the docstrings of over
`MIN_DOC_CHARS` characters of the packages that a source names. Docstrings are read out of the
source files by parsing, not by import: nothing is run, a module for another platform or a GUI
does no harm, a docstring counts where it is written and nowhere else, and the same installation
gives the same rows in every process. (Docstrings of compiled modules are not found.)

Every package is one "file" `python_docs:<package>`, whose rows are ordered by path and line.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from entropylong_assets.stages.corpus.errors import CorpusError

MIN_DOC_CHARS = 800
"""Shorter docstrings are left out (characters)."""

STDLIB = "stdlib"
"""Stands for all public modules of the standard library."""

TOPICS = "pydoc_data.topics"
"""The chapters that `help()` shows, as a dictionary by topic."""

_SCHEME = "python_docs:"
# Raised when the same installation gives other rows.
_EDITION = 1
# Folders of tests and of programs for a screen; their docstrings document nothing.
_SKIPPED = {"test", "tests", "testing", "idlelib", "idle_test", "turtledemo", "lib2to3"}
_SKIPPED |= {"site-packages", "__pycache__", "pydoc_data"}
_PARSING = threading.Lock()
_DEFINITION = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Doc(NamedTuple):
    """One text: qualified name and docstring."""

    name: str
    text: str


def uri_of(package: str) -> str:
    return _SCHEME + package


def package_of(uri: str) -> str:
    return uri.removeprefix(_SCHEME)


def packages(source: str, uri: str) -> list[str]:
    """Packages that a source's `uri` lists, commas between them, each checked to be there.

    A name is `stdlib`, `pydoc_data.topics`, a package, or a module within one (`numpy.linalg`).
    Raises CorpusError.
    """
    names = list(dict.fromkeys(name.strip() for name in uri.split(",") if name.strip()))
    if not names:
        raise CorpusError(f"source '{source}': its uri names no package; list at least one")
    for name in names:
        if not _locations(name):
            raise CorpusError(
                f"source '{source}': no Python sources of '{name}' in this environment; install "
                "it or take it out of the source's uri"
            )
    return names


def version(package: str) -> str:
    """16 hex digits of the installed edition: Python's version and the distribution's."""
    parts = [str(_EDITION), package, ".".join(map(str, sys.version_info[:3]))]
    top = package.partition(".")[0]
    if top != STDLIB and top not in sys.stdlib_module_names:
        parts += _distributions(top)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _distributions(top: str) -> list[str]:
    """What a top-level package was installed from, with versions."""
    try:
        return [importlib.metadata.version(top)]
    except importlib.metadata.PackageNotFoundError:  # e.g. sklearn, of scikit-learn
        names = sorted(set(importlib.metadata.packages_distributions().get(top, [])))
        return [f"{name} {importlib.metadata.version(name)}" for name in names]


def _locations(package: str) -> list[tuple[str, Path]]:
    """Names and paths (a folder or a .py file) of the modules that `package` stands for."""
    if package == STDLIB:
        folder = Path(sysconfig.get_path("stdlib"))
        names = sorted(n for n in sys.stdlib_module_names if not n.startswith("_"))
        paths = [(n, p) for n in names for p in (folder / n, folder / f"{n}.py") if p.exists()]
        return [(name, path) for name, path in paths if name not in _SKIPPED]
    top, *inner = package.split(".")
    if not re.fullmatch(r"\w+(\.\w+)*", package):
        return []
    spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
    if spec is None:
        return []
    roots = [Path(folder) for folder in spec.submodule_search_locations or []]
    if not inner:
        single = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
        return [(top, path) for path in roots or single]
    stems = [root.joinpath(*inner) for root in roots]
    candidates = [path for stem in stems for path in (stem, stem.with_name(f"{stem.name}.py"))]
    return [(package, path) for path in candidates if path.exists()]


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted names and source files, in a stable order."""
    for name, path in _locations(package):
        if path.is_file():
            yield name, path
            continue
        for file in sorted(path.rglob("*.py"), key=lambda file: file.relative_to(path).as_posix()):
            inside = file.relative_to(path).with_suffix("").parts
            if not _SKIPPED & set(inside[:-1]):
                parts = inside[:-1] if inside[-1] == "__init__" else inside
                yield ".".join((name, *parts)), file


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, _DEFINITION):
            name = f"{prefix}.{node.name}"
            yield name, node
            yield from _definitions(node.body, name)
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node.body, prefix)


def _parse(content: bytes) -> ast.Module:
    """`ast.parse`, which in Python 3.11 fails by chance where two threads are in it at once."""
    with _PARSING:
        for _ in range(20):
            try:
                return ast.parse(content)
            except SystemError:  # another thread of the process, that knows no lock of ours
                continue
        return ast.parse(content)


def _docstrings(module: str, path: Path) -> Iterator[Doc]:
    """Long docstrings of one file. Raises SyntaxError, ValueError or OSError."""
    content = path.read_bytes()
    # Parsing is what takes time: leave out files in which no two triple quotes lie far apart.
    gaps = re.split(rb'"""|\'\'\'', content)[1:]
    if max(map(len, gaps), default=0) <= MIN_DOC_CHARS:
        return
    tree = _parse(content)
    for name, node in [(module, tree), *_definitions(tree.body, module)]:
        raw = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
        if raw and len(raw) > MIN_DOC_CHARS:
            text = inspect.cleandoc(raw)
            if len(text) > MIN_DOC_CHARS:
                yield Doc(name, text)


class _Reader:
    """Rows of one package, read as far as was asked for and then kept."""

    def __init__(self, package: str) -> None:
        self.docs: list[Doc] = []
        self.unparsed: list[str] = []
        self._coming = self._topics() if package == TOPICS else self._read(package)
        self._lock = threading.Lock()

    @staticmethod
    def _topics() -> Iterator[Doc]:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield Doc(f"{TOPICS}.{name}", topics[name])

    def _read(self, package: str) -> Iterator[Doc]:
        for module, path in _modules(package):
            try:
                yield from _docstrings(module, path)
            except (SyntaxError, ValueError, OSError, RecursionError):
                self.unparsed.append(module)  # templates, and Python of another version

    def until(self, stop: int | None) -> list[Doc]:
        with self._lock:
            wanted = None if stop is None else max(0, stop - len(self.docs))
            try:
                self.docs.extend(itertools.islice(self._coming, wanted))
            except BaseException:
                # A generator that was interrupted has ended: kept, it would pass for a short one.
                _reader.cache_clear()
                raise
            return self.docs


@functools.lru_cache(maxsize=32)
def _reader(package: str, _version: str) -> _Reader:
    return _Reader(package)


def read(package: str, start: int = 0, stop: int | None = None) -> list[Doc]:
    """Rows `start` to `stop` of a package; the same in every process of one installation."""
    return _reader(package, version(package)).until(stop)[start:stop]


def count(package: str) -> tuple[int, int]:
    """Rows of a package, and its source files that could not be parsed."""
    reader = _reader(package, version(package))
    return len(reader.until(None)), len(reader.unparsed)

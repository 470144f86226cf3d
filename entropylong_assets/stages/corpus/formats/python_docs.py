"""Documentation inside the installed Python packages: a real corpus that needs no network.

It consists of the texts of `pydoc_data.topics` and of the docstrings longer than `MIN_DOC_CHARS`
characters in the packages that a source names. Docstrings are parsed from the source files, and
nothing is imported. So no code runs, modules for other platforms can be read, each docstring is
read once, in the file that contains it, and one installation gives the same rows in every process.
Docstrings of compiled modules are not found.

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
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, VirtualFormat
from entropylong_assets.stages.corpus.rows import Item, Row
from entropylong_assets.stages.corpus.settings import SourceSettings

MIN_DOC_CHARS = 800
"""Shorter docstrings are left out (characters)."""

STDLIB = "stdlib"
"""Stands for all public modules of the standard library."""

TOPICS = "pydoc_data.topics"
"""The chapters that `help()` shows, as a dictionary by topic."""

_SCHEME = "python_docs:"
# Increase it if a change of this code gives other rows for the same installation.
_EDITION = 1
# Folders of tests and of graphical programs; their docstrings document nothing.
_SKIPPED = {"test", "tests", "testing", "idlelib", "idle_test", "turtledemo", "lib2to3"}
_SKIPPED |= {"site-packages", "__pycache__", "pydoc_data"}
_PARSING = threading.Lock()
_DEFINITION = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Doc(NamedTuple):
    """One text: qualified name and docstring."""

    name: str
    text: str


@SOURCE_FORMATS.register("python_docs")
class PythonDocs(VirtualFormat):
    """Row numbers are those of the texts of a package, from 0."""

    def list_files(self, source: SourceSettings) -> list[str]:
        return [_SCHEME + package for package in packages(source.name, source.uri)]

    def version(self, file: str) -> str | None:
        package = _package_of(file)
        return version(package) if _locations(package) else None

    def count_rows(self, file: str, /) -> int:
        return count(_package_of(file))[0]

    def read_rows(self, file: str, _source: SourceSettings, start: int, /) -> Iterator[Item]:
        package, row = _package_of(file), start
        reader = _reader(package, version(package))
        while len(docs := reader.until(row + 1)) > row:  # reads no further than the caller wants
            yield Row(file, row, *docs[row])
            row += 1


def _package_of(uri: str) -> str:
    return uri.removeprefix(_SCHEME)


def packages(source: str, uri: str) -> list[str]:
    """Return the packages in a source's comma-separated `uri`, each checked to be installed.

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
    """Return 16 hex digits of the versions of Python and of the package's distribution."""
    parts = [str(_EDITION), package, ".".join(map(str, sys.version_info[:3]))]
    top = package.partition(".")[0]
    if top != STDLIB and top not in sys.stdlib_module_names:
        parts += _distributions(top)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _distributions(top: str) -> list[str]:
    """Distributions that a top-level package was installed from, with versions."""
    try:
        return [importlib.metadata.version(top)]
    except importlib.metadata.PackageNotFoundError:  # e.g. sklearn, of scikit-learn
        names = sorted(set(importlib.metadata.packages_distributions().get(top, [])))
        return [f"{name} {importlib.metadata.version(name)}" for name in names]


def _locations(package: str) -> list[tuple[str, Path]]:
    """Names and paths (a folder or a .py file) of the modules that `package` names."""
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
    """Yield dotted names and source files, in a stable order."""
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
    """Parse a file. In Python 3.11 `ast.parse` may fail if two threads call it at once."""
    with _PARSING:
        for _ in range(20):
            try:
                return ast.parse(content)
            except SystemError:  # another thread of the process, which does not hold our lock
                continue
        return ast.parse(content)


def _docstrings(module: str, path: Path) -> Iterator[Doc]:
    """Yield the long docstrings of one file. Raises SyntaxError, ValueError or OSError."""
    content = path.read_bytes()
    # Parsing takes most of the time: skip files without triple quotes that are far enough apart.
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
    """Rows of one package, read as far as needed, and kept in memory."""

    def __init__(self, package: str) -> None:
        self.docs: list[Doc] = []
        self.unparsed: list[str] = []
        self._remaining = self._topics() if package == TOPICS else self._read(package)
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
                self.unparsed.append(module)  # a template, or Python of another version

    def until(self, stop: int | None) -> list[Doc]:
        with self._lock:
            wanted = None if stop is None else max(0, stop - len(self.docs))
            try:
                self.docs.extend(itertools.islice(self._remaining, wanted))
            except BaseException:
                # An interrupted generator can't continue: if kept, the package would seem to end.
                _reader.cache_clear()
                raise
            return self.docs


@functools.lru_cache(maxsize=32)
def _reader(package: str, _version: str) -> _Reader:
    return _Reader(package)


def read(package: str, start: int = 0, stop: int | None = None) -> list[Doc]:
    """Return rows `start` to `stop` of a package, equal in every process of one installation."""
    return _reader(package, version(package)).until(stop)[start:stop]


def count(package: str) -> tuple[int, int]:
    """Count the rows of a package, and its source files that can't be parsed."""
    reader = _reader(package, version(package))
    return len(reader.until(None)), len(reader.unparsed)

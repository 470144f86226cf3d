"""Pages and manuals in the documentation folders of a source distribution."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.reference_run.packages import read_files
from benchmarks.reference_run.text import MIN_CHARS, clean, is_english_prose, title_of

# Paths of pages: in a folder of documentation, by their file types.
PAGES = (
    r"(?i)(^|/)(docs?|documentation|doc-src|sites|manuals?|guide|help|userguide)/.*\.(rst|md|txt)$"
)

# Lists of changes, people and names, legal texts, translations, tests and templates.
_SKIPPED = re.compile(
    r"(?i)(change|relnotes|_sources/|history|whats_?-?new|release|news\b|/news|author|contributors|acknowledg|thanks|licen[cs]e"
    r"|copying|locale|translat|requirement|constraints|_templates|_static|(^|/)tests?/|/data/|todo|roadmap"
    r"|credits|announce|sponsor|fixtures|cmakelists|testdata|top_level|sources\.txt|robots\.txt"
    r"|wordlist|glossary\.txt|vendor|node_modules|site-packages|_build|\.egg-info|\.dist-info)"
)
# Folders of translated pages, named by their language.
_LANGUAGE = re.compile(r"/(?!en)(?:[a-z]{2}(?:[_-][A-Za-z]{2,4})?)/(?=.)")
_LANGUAGES = set(
    re.findall(
        r"\w+",
        "ar az bn cs da de el es fa fi fr he hi hu id it ja ko nl no pl pt ro ru sv ta th tr uk ur "
        "vi zh",
    )
)
_ENTRY = re.compile(r"^(?:.*<(?P<target>[^>]+)>|(?P<plain>\S+))$")

_TOCTREE = re.compile(r"^([ ]*)\.\. toctree::.*\n((?:\1[ ]+\S.*\n|[ \t]*\n)*)", re.M)


class Page(NamedTuple):
    """One page of documentation: cleaned text, title and path within the archive."""

    text: str
    title: str
    path: str


def read_pages(archive: Path) -> list[Page]:
    """Return the English prose pages of an sdist in the order of its tables of contents."""
    raw = {}
    for path, content in read_files(archive, PAGES):
        if not _SKIPPED.search(path) and not _is_translated(path):
            raw[path] = content.decode("utf-8", errors="replace")
    pages, seen = [], set()
    for path in contents_order(raw):
        text = clean(raw[path])
        if (words := " ".join(text.split())) in seen:
            continue  # some packages ship their pages twice
        seen.add(words)
        if len(text) >= MIN_CHARS and "\ufffd" not in text and is_english_prose(text):
            pages.append(Page(text, title_of(text, path), path))
    return pages


def _is_translated(path: str) -> bool:
    return any(m[0].strip("/")[:2] in _LANGUAGES for m in _LANGUAGE.finditer(path))


def contents_order(pages: Mapping[str, str]) -> list[str]:
    """Sort paths as a printed manual would: by `toctree` from the outermost index pages.

    Pages that no table of contents names follow their folder's, sorted by path.
    """
    order: dict[str, None] = {}

    def visit(path: str) -> None:
        if path in order or path not in pages:
            return
        order[path] = None
        for target in _targets(path, pages):
            visit(target)

    index_first = sorted(pages, key=lambda p: (p.count("/"), not _is_index(p), p))
    for path in filter(_is_index, index_first):
        visit(path)
    for path in sorted(pages):
        visit(path)
    return list(order)


def _is_index(path: str) -> bool:
    return posixpath.basename(path).partition(".")[0] in {"index", "contents"}


def _targets(path: str, pages: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths that the tables of contents of a page name."""
    folder, suffix = posixpath.dirname(path), posixpath.splitext(path)[1]
    for block in re.finditer(
        r"^([ ]*)\.\. toctree::.*\n((?:\1[ ]+\S.*\n|[ \t]*\n)*)", pages[path], re.M
    ):
        for line in block[2].split("\n"):
            match = _ENTRY.match(line.strip())
            if match is None or line.strip().startswith(":"):
                continue
            name = posixpath.normpath(posixpath.join(folder, match["target"] or match["plain"]))
            if "*" in name:
                yield from fnmatch.filter(sorted(pages), name + suffix)
            else:
                yield name if name in pages else name + suffix


def manuals(pages: list[Page], minimum: int) -> list[Page]:
    """Join consecutive pages, in reading order, to manuals of at least `minimum` characters.

    Pages at the end that don't make up a whole manual belong to the last one.
    """
    joined: list[list[Page]] = []
    size = 0
    for page in pages:
        if not joined or size >= minimum:
            joined.append([])
            size = 0
        joined[-1].append(page)
        size += len(page.text) + 1
    if size < minimum and joined:
        rest = joined.pop()
        if not joined:
            return []
        joined[-1] += rest
    return [Page("\n".join(p.text for p in part), part[0].title, part[0].path) for part in joined]

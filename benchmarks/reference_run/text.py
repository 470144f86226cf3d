"""Cleans documentation, tells prose from lists, and cuts documents at their headings."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

MIN_CHARS = 800
"""Shorter documents are left out (characters)."""

MAX_CHARS = 12_000
"""Documents of training are cut at headings to at most this length (characters)."""

MIN_PIECE = 1_500
"""Pieces of a cut document are at least this long where its paragraphs allow it (characters)."""

LONG_CHARS = 70_000
"""Minimum length of a long held-out document (characters)."""

MAX_OTHER_LINES = 0.3
"""Maximum share of lines that aren't prose, code or headings."""

_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+:.<>_])\1{2,}\s*$")
_ENGLISH = re.compile(r"\b(?:the|of|to|and|a|in|is|for|that|be|this|with|can|you|are)\b", re.I)
# A comment of reStructuredText: not a directive, target, footnote or substitution.
_COMMENT = re.compile(
    r"^\.\.(?:[ \t]+(?![\w:.+-]+::|_|\[|\|)[^\n]*)?\n(?:[ \t]+[^\n]*\n|[ \t]*\n(?=[ \t]))*", re.M
)
_TARGET = re.compile(r"^[ \t]*\.\. (?:_[^\n]*:|index::[^\n]*|meta::[^\n]*)[ \t]*\n", re.M)
_BLOCK_TAG = re.compile(
    r"</?(?:p|div|ul|ol|dl|dt|dd|h\d|note|important|caution|br|tr|table)\b[^>]*>", re.I
)


_DIRECTIVE = re.compile(
    r"\.\. (?:auto\w*|toctree|module|include|literalinclude|todo)::|:[\w-]+:\s*\S*$"
)
_LETTERS = re.compile(r"[^\W\d_]+| +")


class Document(NamedTuple):
    """One document and where it is from."""

    text: str
    title: str
    package: str
    version: str
    license: str
    path: str
    family: str
    group: str


def clean(text: str) -> str:
    """Remove comments, link targets and repeated empty lines from a page."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").expandtabs(4)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = _TARGET.sub("", _COMMENT.sub("", text + "\n"))
    text = re.sub(r"^:(?:orphan|tocdepth|Author|Copyright)[^\n]*\n", "", text, flags=re.M)
    text = re.sub(r"[ ]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def strip_html(text: str) -> str:
    """Return HTML as plain text: items with a dash, paragraphs apart, entities resolved."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"<li\b[^>]*>\s*(?:<p>)?", "\n- ", text, flags=re.I)
    text = _BLOCK_TAG.sub("\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def other_share(text: str) -> float:
    """Return the share of non-empty lines that are tables of numbers, bare names or directives.

    Underlines of headings aren't counted. Code counts as prose: most of its characters are
    letters.
    """
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not _UNDERLINE.match(line)]
    other = sum(_is_other(line) for line in lines)
    return other / max(1, len(lines))


def _is_other(line: str) -> bool:
    if re.match(
        r"\.\. (?:auto\w*|toctree|module|include|literalinclude|todo)::|:[\w-]+:\s*\S*$", line
    ):
        return True
    if re.match(r"[+|]", line) or re.fullmatch(r"\S*[/.\w-]{12,}\S*", line):
        return True
    others = len(_LETTERS.sub("", line))
    return others > 0.4 * len(line) and len(line) > 3


def is_english_prose(text: str) -> bool:
    """Return whether a page is English prose and not a table, a list of names or a log."""
    words = len(text.split())
    foreign = len(text) - len(text.encode("ascii", errors="ignore"))
    return (
        len(_ENGLISH.findall(text)) >= 0.1 * words
        and foreign <= 0.02 * len(text)
        and other_share(text) <= MAX_OTHER_LINES
    )


def title_of(text: str, path: str) -> str:
    """Return the first heading of a page, or the name of its file."""
    lines = text.split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if match := re.match(r"#+\s+(.+)", line):
            return match[1].strip(" #")
        if line.strip() and line[0].isalnum() and _UNDERLINE.match(following):
            return line.strip()
    return path.rpartition("/")[2].rpartition(".")[0]


def sections(text: str) -> list[str]:
    """Split a page before each heading of reStructuredText or Markdown; the parts join to it."""
    lines = text.splitlines(keepends=True)
    starts, fenced = {0}, False
    for i, line in enumerate(lines):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#{1,4} \S", line):
            starts.add(i)
        elif i and _is_underline(line, lines[i - 1]):
            over = i >= 2 and lines[i - 2].strip() == line.strip()
            starts.add(i - 2 if over else i - 1)
    edges = [*sorted(starts), len(lines)]
    return ["".join(lines[a:b]) for a, b in itertools.pairwise(edges)]


def _is_underline(line: str, above: str) -> bool:
    return bool(
        _UNDERLINE.match(line)
        and above[:1].strip()
        and not _UNDERLINE.match(above)
        and len(line.strip()) >= len(above.strip()) - 1
    )


def cut(text: str, parts: list[str] | None = None) -> Iterator[str]:
    """Yield consecutive pieces of at most MAX_CHARS characters, cut at headings or paragraphs.

    Pieces under MIN_PIECE are joined to a neighbour where it has room, and otherwise dropped
    if shorter than MIN_CHARS. `parts` are the places to cut at, instead of the headings.
    """
    if len(text) <= MAX_CHARS:
        yield text
        return
    pieces: list[str] = []
    for part in (p for section in parts or sections(text) for p in _paragraphs(section)):
        joined = len(pieces[-1]) + len(part) if pieces else MAX_CHARS + 1
        is_small = bool(pieces) and min(len(pieces[-1]), len(part)) < MIN_PIECE
        if joined <= (MAX_CHARS if is_small else MAX_CHARS * 0.6):
            pieces[-1] += part
        else:
            pieces.append(part)
    yield from (piece for piece in pieces if len(piece.strip()) >= MIN_CHARS)


def _paragraphs(part: str) -> list[str]:
    """Cut a section longer than MAX_CHARS at empty lines, or else at line ends.

    A line longer than MAX_CHARS loses its end: it is a listing of values, not prose.
    """
    if len(part) <= MAX_CHARS:
        return [part]
    pieces = [""]
    for block in re.split(r"(?<=\n\n)", part):
        lines = [block] if len(block) <= MAX_CHARS else block.splitlines(keepends=True)
        for line in lines:
            if len(pieces[-1]) + len(line) > MAX_CHARS and pieces[-1]:
                pieces.append("")
            pieces[-1] += line[:MAX_CHARS]
    return pieces

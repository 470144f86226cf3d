"""The word at an anchor, the phrases around it, and the kind of its line.

A context that contains the anchor's word is informative, unless many documents share the wording
around that word. The rule `genuine` (verification/rules.py) decides by these facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import polars as pl
import regex

from entropylong_assets.stages.embeddings.phrases import find_words, split_words

SYMBOL, IMPORT, URL, REFERENCE = "symbol", "import", "url", "reference"
"""Kinds of anchors that carry no information of their own, or come from lists."""

KINDS = (SYMBOL, IMPORT, URL, REFERENCE)

_BEFORE, _AFTER = 96, 24
"""Tokens read before and after an anchor."""

_IMPORT_LINE = regex.compile(
    r"\s*(?:from\s+\S+\s+import\b|import\s|(?:pub\s+)?use\s+[\w:{]|extern\s+crate\b|#\s*include\b"
    r"|using\s+[\w.]+\s*;|require\s*\()"
)
_IMPORT_LIST = regex.compile(r"(?:^|\n)\s*(?:from\s+\S+\s+import\s*\(|use\s+[\w:]*\{)[^)};]*$")
_URL = regex.compile(r"(?:https?|ftp)://\S*$|\bdoi\.org/\S*$")
_REFERENCE = regex.compile(
    r"\s*(?:\.\.\s*)?\[[\w.-]+\]\s|.*\(\d{4}\).*\b(?:pp?\.|vol\.|journal|proc\.|press)", regex.I
)


@dataclass(frozen=True)
class AnchorText:
    """The text at an anchor.

    word: the word that contains the anchor's last character; None if it is no letter or digit.
    phrase: three words that end with it. pair: it and the next word. Each is None at the ends of
    the root. kind: one of `KINDS`, or None.
    """

    word: str | None
    phrase: str | None
    pair: str | None
    kind: str | None


def describe_anchor(
    decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], anchor: int
) -> AnchorText:
    """Describe an anchor of a root.

    decode: token ids to text. token_ids: of the root.
    """
    first = max(0, anchor - _BEFORE)
    before, through, text = (
        decode(token_ids[first:end]) for end in (anchor, anchor + 1, anchor + 1 + _AFTER)
    )
    # Half a character of several tokens decodes to a replacement character.
    before, through = before.rstrip("\ufffd"), through.rstrip("\ufffd")
    # A token that completes no character is part of the next one.
    is_part = len(through) <= len(before)
    last = len(before) if is_part else len(through.rstrip()) - 1
    words = find_words(text)
    at = None
    if last >= len(before):  # the token is not white space alone
        at = next((i for i, word in enumerate(words) if word.start <= last < word.end), None)
    if at is None or not regex.match(r"[\p{L}\p{N}]", text, pos=words[at].start):
        return AnchorText(None, None, None, SYMBOL)
    spelled = [text[word.start : word.end] for word in words]
    return AnchorText(
        spelled[at],
        " ".join(spelled[at - 2 : at + 1]) if at >= 2 else None,
        " ".join(spelled[at : at + 2]) if at + 1 < len(words) else None,
        _kind(text, words[at].start),
    )


def _kind(text: str, position: int) -> str | None:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    line = text[start : end if end >= 0 else None]
    if _URL.search(text, start, position):
        return URL
    if _IMPORT_LINE.match(line) or _IMPORT_LIST.search(text, 0, start):
        return IMPORT
    return REFERENCE if _REFERENCE.match(line) else None


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text without regard to case, to look up an anchor's word in."""
    return frozenset(word.casefold() for word in split_words(text))


def have_words(text: str, words: Iterable[str | None]) -> list[bool | None]:
    """Return whether the text contains each word; None for anchors without a word."""
    contained = words_of(text)
    return [None if word is None else word.casefold() in contained for word in words]


def count_documents(phrases: pl.DataFrame, wanted: Iterable[str | None]) -> dict[str, int]:
    """Look up in how many documents each phrase occurs.

    Phrases that are too rare for the table are missing in the result. phrases: the table `phrases`
    of embedding_index.
    """
    names = pl.Series("phrase", sorted({phrase for phrase in wanted if phrase}), pl.String)
    listed = phrases.join(names.to_frame(), on="phrase", how="semi")
    return dict(listed.select("phrase", "documents").iter_rows())

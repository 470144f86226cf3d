"""Cuts documents into passages that fit the embedder's window, on line and sentence borders.

The embedder silently drops what lies beyond its window, so a chunk is measured in the embedder's
own tokens before it is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_PIECES = re.compile(
    r"""\n+            # lines and paragraphs
      | [.!?…]["')\]]*(\s+)   # sentences; what closes them stays with them
      | (?<=[。！？])""",
    re.VERBOSE,
)
_WORDS = re.compile(r"\s+")

CountTokens = Callable[[list[str]], list[int]]
"""Lengths of texts in the embedder's tokens, its special tokens included."""


_MAX_CHARS_A_TOKEN = 16
"""Some tokenizers give one unknown token for any word over a length: a chunk is bounded in
characters too, far above what a token of text takes (4 to 5)."""


def _fits(n_tokens: int, n_chars: int, max_tokens: int) -> bool:
    return n_tokens <= max_tokens and n_chars <= _MAX_CHARS_A_TOKEN * max_tokens


@dataclass(frozen=True)
class Chunk:
    """text == document[start:end]; n_tokens counts the embedder's tokens."""

    start: int
    end: int
    text: str
    n_tokens: int


def chunk_document(
    text: str, max_tokens: int, min_chars: int, count_tokens: CountTokens
) -> list[Chunk]:
    """Chunks of a document: in order, without overlap, each of at most `max_tokens` tokens.

    Between and around chunks only white space is left out. Lines and sentences are joined
    greedily until the window is full; a sentence longer than the window is cut between words, a
    word longer than it between characters. A chunk of fewer than `min_chars` characters is joined
    to a neighbour where the two fit together. Every chunk is counted as a whole, since its tokens
    need not be the sum over its sentences.
    """
    special = count_tokens([""])[0]
    spans = _fitting_spans(text, 0, len(text), max_tokens, count_tokens)
    chunks: list[Chunk] = []
    i = 0
    while i < len(spans):
        start, end, n_tokens = spans[i]
        total, j = n_tokens, i + 1
        while j < len(spans):
            total += spans[j][2] - special
            if not _fits(total, spans[j][1] - start, max_tokens):
                break
            j += 1
        while j > i + 1:
            end = spans[j - 1][1]
            n_tokens = count_tokens([text[start:end]])[0]
            if _fits(n_tokens, end - start, max_tokens):
                break
            j -= 1
            end, n_tokens = spans[i][1:]
        chunks.append(Chunk(start, end, text[start:end], n_tokens))
        i = j
    return _join_short(text, chunks, max_tokens, min_chars, count_tokens)


def _join_short(
    text: str, chunks: list[Chunk], max_tokens: int, min_chars: int, count_tokens: CountTokens
) -> list[Chunk]:
    joined: list[Chunk] = []
    for chunk in chunks:
        if joined and min(len(chunk.text), len(joined[-1].text)) < min_chars:
            whole = text[joined[-1].start : chunk.end]
            n = count_tokens([whole])[0]
            if _fits(n, len(whole), max_tokens):
                joined[-1] = Chunk(joined[-1].start, chunk.end, whole, n)
                continue
        joined.append(chunk)
    return joined


def _fitting_spans(
    text: str, start: int, end: int, max_tokens: int, count_tokens: CountTokens
) -> list[tuple[int, int, int]]:
    """(start, end, tokens) of sentences, and of parts of those that are too long."""
    spans = _split(text, start, end, _PIECES)
    counts = count_tokens([text[a:b] for a, b in spans])
    fitting: list[tuple[int, int, int]] = []
    for (a, b), n in zip(spans, counts, strict=True):
        whole = _fits(n, b - a, max_tokens)
        fitting += [(a, b, n)] if whole else _cut(text, a, b, max_tokens, count_tokens)
    return fitting


def _cut(
    text: str, start: int, end: int, max_tokens: int, count_tokens: CountTokens
) -> list[tuple[int, int, int]]:
    """Halves a span between words, else between characters, until each part fits."""
    words = _split(text, start, end, _WORDS)
    if len(words) > 1:
        middle = len(words) // 2
        halves = [(words[0][0], words[middle - 1][1]), (words[middle][0], words[-1][1])]
    else:
        centre = (start + end) // 2
        halves = [(start, centre), (centre, end)]
    counts = count_tokens([text[a:b] for a, b in halves])
    parts: list[tuple[int, int, int]] = []
    for (a, b), n in zip(halves, counts, strict=True):
        if _fits(n, b - a, max_tokens) or b - a <= 1:
            parts.append((a, b, n))
        else:
            parts += _cut(text, a, b, max_tokens, count_tokens)
    return parts


def _split(text: str, start: int, end: int, border: re.Pattern[str]) -> list[tuple[int, int]]:
    """Spans between borders, without white space at their ends, none of them empty."""
    cuts = [start]
    for match in border.finditer(text, start, end):
        cuts += [match.start(match.lastindex or 0), match.end()]
    cuts.append(end)
    spans = []
    for a, b in zip(cuts[::2], cuts[1::2], strict=True):
        piece = text[a:b]
        a += len(piece) - len(piece.lstrip())
        b -= len(piece) - len(piece.rstrip())
        if a < b:
            spans.append((a, b))
    return spans


def chunk_ids(doc_id: str, chunks: Sequence[Chunk]) -> list[str]:
    """`<doc_id>-<number>`, the number with five digits so that ids sort in order."""
    return [f"{doc_id}-{number:05d}" for number in range(len(chunks))]

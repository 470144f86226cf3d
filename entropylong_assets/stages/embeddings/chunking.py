"""Cuts documents into chunks that fit the embedder's window, at line and sentence borders.

The embedder silently ignores text beyond its window, so every chunk is counted in the embedder's
own tokens before it is accepted.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import regex

# Unicode's property of signs that end sentences lacks the ellipsis, and the signs of Tibetan and
# (in older versions) Khmer.
_PIECES = regex.compile(
    r"""\n+            # lines and paragraphs
      | [\p{Sentence_Terminal}…།༎។៕]["'”’»)\]]*(\s+)   # sentences, with what closes them
      | [。！？｡॥။።།༎។៕][”’」』）]*()   # of scripts that write no space after them""",
    regex.VERBOSE,
)
_WORDS = regex.compile(r"\s+")

CountTokens = Callable[[list[str]], list[int]]
"""Lengths of texts in the embedder's tokens, its special tokens included."""

Span = tuple[int, int, int]
"""Start, end and tokens."""

_MAX_CHARS_PER_TOKEN = 16
"""Limit of a chunk in characters, far above the 4 to 5 per token of normal text: some tokenizers
give a single unknown token for any word over a certain length."""

_BLOCK_CHARS = 1 << 18
"""Characters of the sentences counted at once: counting takes about 500 bytes per token."""


def _fits(n_tokens: int, n_chars: int, max_tokens: int) -> bool:
    return n_tokens <= max_tokens and n_chars <= _MAX_CHARS_PER_TOKEN * max_tokens


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
    """Cut a document into chunks: in order, without overlap, of at most `max_tokens` tokens each.

    Only white space between and around chunks is left out. Lines and sentences are joined greedily
    until the window is full. A sentence longer than the window is cut between words, a word longer
    than the window between characters. A chunk of fewer than `min_chars` characters is joined to a
    neighbour if the two fit together. Every chunk is counted as a whole, since its tokens need not
    be the sum over its sentences.

    Time is linear in the length of the text. Beside text and chunks, memory holds `_BLOCK_CHARS`
    characters, or 16 bytes per word of one sentence: a line of 50 MB is no special case.
    """
    special = count_tokens([""])[0]
    spans = _fitting_spans(text, max_tokens, count_tokens)
    chunks: list[Chunk] = []
    ahead: deque[Span] = deque(islice(spans, 1))
    while ahead:
        start, end, n_tokens = ahead[0]
        total, j = n_tokens, 1
        while True:
            if j == len(ahead):
                ahead.extend(islice(spans, 1))
                if j == len(ahead):
                    break
            total += ahead[j][2] - special
            if not _fits(total, ahead[j][1] - start, max_tokens):
                break
            j += 1
        while j > 1:
            end = ahead[j - 1][1]
            n_tokens = count_tokens([text[start:end]])[0]
            if _fits(n_tokens, end - start, max_tokens):
                break
            j -= 1
            end, n_tokens = ahead[0][1:]
        chunks.append(Chunk(start, end, text[start:end], n_tokens))
        for _ in range(j):
            ahead.popleft()
        ahead.extend(islice(spans, 0 if ahead else 1))
    return _join_short(text, chunks, max_tokens, min_chars, count_tokens)


def _join_short(
    text: str, chunks: list[Chunk], max_tokens: int, min_chars: int, count_tokens: CountTokens
) -> list[Chunk]:
    joined: list[Chunk] = []
    for chunk in chunks:
        if joined and min(len(chunk.text), len(joined[-1].text)) < min_chars:
            place = joined[-1].start, chunk.end
            whole = text[slice(*place)]
            (n,) = _counted(text, [place], max_tokens, count_tokens)
            if _fits(n, len(whole), max_tokens):
                joined[-1] = Chunk(joined[-1].start, chunk.end, whole, n)
                continue
        joined.append(chunk)
    return joined


def _counted(
    text: str, spans: Sequence[tuple[int, int]], max_tokens: int, count_tokens: CountTokens
) -> list[int]:
    """Count the tokens of each span; 0 for one with too many characters for any window."""
    short = [b - a <= _MAX_CHARS_PER_TOKEN * max_tokens for a, b in spans]
    texts = [text[a:b] for (a, b), counts in zip(spans, short, strict=True) if counts]
    tokens = iter(count_tokens(texts) if texts else [])
    return [next(tokens) if counts else 0 for counts in short]


def _fitting_spans(text: str, max_tokens: int, count_tokens: CountTokens) -> Iterator[Span]:
    """Yield sentences, and parts of those that are too long, with their tokens."""
    for block in _blocks(_split(text, 0, len(text), _PIECES)):
        counts = _counted(text, block, max_tokens, count_tokens)
        for (a, b), n in zip(block, counts, strict=True):
            if _fits(n, b - a, max_tokens):
                yield a, b, n
                continue
            words = array("q", chain.from_iterable(_split(text, a, b, _WORDS)))
            yield from _cut(text, words, 0, len(words), max_tokens, count_tokens)


def _blocks(spans: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield spans in groups of at most `_BLOCK_CHARS` characters; a longer span is alone."""
    block: list[tuple[int, int]] = []
    for span in spans:
        if block and span[1] - block[0][0] > _BLOCK_CHARS:
            yield block
            block = []
        block.append(span)
    if block:
        yield block


def _cut(
    text: str,
    words: array[int],
    first: int,
    last: int,
    max_tokens: int,
    count_tokens: CountTokens,
) -> Iterator[Span]:
    """Halve a span between words, else between characters, until each part fits.

    words: start and end of each word in turn. first, last: range of the span, as indices in it.
    """
    if last - first > 2:
        middle = first + (last - first) // 4 * 2
        parts = [(words, first, middle), (words, middle, last)]
    else:
        start, end = words[first], words[first + 1]
        centre = (start + end) // 2
        parts = [(array("q", (start, centre)), 0, 2), (array("q", (centre, end)), 0, 2)]
    halves = [(w[i], w[j - 1]) for w, i, j in parts]
    counts = _counted(text, halves, max_tokens, count_tokens)
    for (a, b), n, part in zip(halves, counts, parts, strict=True):
        if _fits(n, b - a, max_tokens) or b - a <= 1:
            yield a, b, n
        else:
            yield from _cut(text, *part, max_tokens, count_tokens)


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Return start and end of each line and sentence of a text, in order, without the white space
    between them."""
    return list(_split(text, 0, len(text), _PIECES))


def _split(
    text: str, start: int, end: int, border: regex.Pattern[str]
) -> Iterator[tuple[int, int]]:
    """Yield the spans between borders, without white space at their ends and never empty."""
    at = start
    for cut, after in chain(
        ((m.start(m.lastindex or 0), m.end()) for m in border.finditer(text, start, end)),
        [(end, end)],
    ):
        piece = text[at:cut]
        a, b = at + len(piece) - len(piece.lstrip()), cut - (len(piece) - len(piece.rstrip()))
        if a < b:
            yield a, b
        at = after


def chunk_ids(doc_id: str, chunks: Sequence[Chunk]) -> list[str]:
    """Return `<doc_id>-<number>` per chunk; numbers have five digits, so that ids sort in order."""
    return [f"{doc_id}-{number:05d}" for number in range(len(chunks))]

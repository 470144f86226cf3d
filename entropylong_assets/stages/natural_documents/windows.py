"""Cutting long documents into windows, and scoring each in a long and in a short window.

Legend: T tokens of a window, P paragraphs of a document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
MAX_SKIP = 1 / 8
"""Maximum share of a window that is dropped so that the next one begins a paragraph."""


def paragraph_starts(text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Token positions at which paragraphs begin, ascending, without 0; [P].

    spans: characters (start, end) of each token. A paragraph begins after an empty line.
    """
    ends = [match.end() for match in _PARAGRAPH_END.finditer(text)]
    starts_T = np.array([start for start, _ in spans], np.int64)
    positions = np.unique(np.searchsorted(starts_T, np.array(ends, np.int64)))
    return positions[positions < len(spans)]


def cut_windows(n_tokens: int, size: int, paragraphs_P: NDArray[np.int64]) -> list[int]:
    """Return the first tokens of a document's windows: `size` tokens each, without overlap.

    A window begins at the first paragraph after the end of the previous window, if it then fits and
    at most `MAX_SKIP` of a window is dropped for that; otherwise directly at that end.
    """
    starts: list[int] = []
    at = 0
    while at + size <= n_tokens:
        starts.append(at)
        end = at + size
        number = int(np.searchsorted(paragraphs_P, end))
        following = int(paragraphs_P[number]) if number < len(paragraphs_P) else end
        fits = following + size <= n_tokens and following - end <= size * MAX_SKIP
        at = following if fits else end
    return starts


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a document, of the length of a sample without its special tokens."""

    doc_id: str
    source: str
    number: int
    """Number of the window in its document, from 0."""
    start: int
    """Its first token in the document."""
    token_ids_T: NDArray[np.int64]
    text: str

    @property
    def window_id(self) -> str:
        return f"{self.doc_id}-{self.number:05d}"


@dataclass(frozen=True, eq=False)
class WindowScores:
    """Surprisals of a window's tokens (nats, float32 [T]; NaN where no prefix exists)."""

    long_T: NDArray[np.float32]
    short_T: NDArray[np.float32]
    long_start_T: NDArray[np.int64]
    """First token of the window that the long window of each token contains."""
    short_start_T: NDArray[np.int64]
    """First token of the window that the short window of each token contains."""


@dataclass(frozen=True, eq=False)
class _Slide:
    request: ScoringRequest
    start: int
    """First token of the window in it."""
    scored: slice
    """Tokens of the window that it scores."""


def slides(token_ids_T: NDArray[np.int64], bos_ids: Sequence[int], length: int) -> Iterator[_Slide]:
    """Sequences of at most `length` tokens, special tokens included, that score every token once.

    Each begins half a length after the last, so that a token has at least about half a length
    before it, if the window has.
    """
    bos = np.array(bos_ids, np.int64)
    size = length - len(bos)
    start, scored = 0, 0 if len(bos) else 1
    while scored < len(token_ids_T):
        end = min(start + size, len(token_ids_T))
        ids = np.concatenate([bos, token_ids_T[start:end]])
        positions = np.arange(scored, end, dtype=np.int64) - start + len(bos)
        yield _Slide(ScoringRequest(ids, positions), start, slice(scored, end))
        start, scored = start + max(1, size // 2), end


def score_windows(
    windows: Sequence[Window],
    scorer: Scorer,
    bos_ids: Sequence[int],
    long_and_short: tuple[int, int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[WindowScores]:
    """Score every token of the windows in a long and in a short window.

    long_and_short: maximum lengths of a scored sequence, special tokens included. on_progress:
    called with the tokens of each forward pass.
    """
    plans = [
        [list(slides(window.token_ids_T, bos_ids, n)) for n in long_and_short] for window in windows
    ]
    requests = [slide.request for plan in plans for part in plan for slide in part]
    scores = iter(scorer.score(requests, on_progress))
    results = []
    for window, (long, short) in zip(windows, plans, strict=True):
        length = len(window.token_ids_T)
        long_T, long_start_T = _join(long, scores, length)
        short_T, short_start_T = _join(short, scores, length)
        results.append(WindowScores(long_T, short_T, long_start_T, short_start_T))
    return results


def _join(
    part: Sequence[_Slide], scores: Iterator[PositionScores], length: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the surprisals of a window, and the start of the sequence in which each was scored."""
    values_T = np.full(length, np.nan, np.float32)
    starts_T = np.zeros(length, np.int64)
    for slide in part:
        values_T[slide.scored] = next(scores).surprisal_N
        starts_T[slide.scored] = slide.start
    return values_T, starts_T

"""The natural documents of one shard: reading, cutting, scoring and choosing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.natural_documents.evidence import (
    evidence_rows,
    gzip_ratio,
    information_gain,
)
from entropylong_assets.stages.natural_documents.windows import (
    Window,
    WindowScores,
    cut_windows,
    paragraph_starts,
    score_windows,
)

IS_ROOT, SHORTER_THAN_SAMPLE = "is_root", "shorter_than_a_sample"
COLUMNS = ["doc_id", "source", "text"]
"""Columns of the documents that are read."""
WINDOWS_PER_BATCH = 8
"""Number of windows scored at once."""


@dataclass(frozen=True)
class WindowLengths:
    """Lengths in tokens, special tokens included."""

    sample: int
    long: int
    short: int
    bos_ids: tuple[int, ...]

    @property
    def content(self) -> int:
        """Tokens of a document in a sample."""
        return self.sample - len(self.bos_ids)


def window_lengths(
    sample_tokens: int, max_positions: int, bos_ids: tuple[int, ...], short_tokens: int | None
) -> WindowLengths:
    """Return the lengths for a model that reads at most `max_positions` tokens.

    The long window has the length of a sample, or of what the model can read if that is less.
    Raises ValueError if the short window is not shorter than the long one.
    """
    from entropylong_assets.stages.natural_documents.settings import SHORT_TOKENS

    long = min(sample_tokens, max_positions)
    short = short_tokens or min(SHORT_TOKENS, long // 4)
    if not len(bos_ids) + 4 <= short < long:
        raise ValueError(
            f"natural.short_tokens ({short}) must be less than the long window, which has {long} "
            f"tokens (samples.tokens is {sample_tokens}, the scoring model reads {max_positions}), "
            f"and at least {len(bos_ids) + 4}"
        )
    return WindowLengths(sample_tokens, long, short, bos_ids)


@dataclass
class DocumentChoice:
    """Chooses the long documents of a shard and cuts them; counts what happens to each."""

    lengths: WindowLengths
    min_tokens: int
    tokenizer: Tokenizer
    removed: Mapping[str, str]
    """Documents that are no natural documents, and why: roots, copies, near-duplicates."""
    documents: int = 0
    short: int = 0
    cut: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def windows(
        self,
        batches: Iterable[pl.DataFrame],
        on_dropped: Callable[[list[dict[str, Any]]], None] = lambda _: None,
        only: frozenset[str] | None = None,
    ) -> Iterator[Window]:
        """Yield the windows in the order of the documents.

        batches: documents with `COLUMNS`. on_dropped: called with rows of the table `dropped`.
        only: documents to look at; None: all.
        """
        for batch in batches:
            for doc_id, source, text in batch.select(COLUMNS).iter_rows():
                if only is not None and doc_id not in only:
                    continue
                self.documents += 1
                # A token is at least one byte, so short texts are recognized without the tokenizer.
                ids: list[int] = []
                paragraphs = np.zeros(0, np.int64)
                if len(text.encode()) >= self.min_tokens:
                    ids, paragraphs = self._encode(text)
                if len(ids) < self.min_tokens:
                    self.short += 1
                    continue
                starts = cut_windows(len(ids), self.lengths.content, paragraphs)
                reason = self.removed.get(doc_id) or (None if starts else SHORTER_THAN_SAMPLE)
                if reason is not None:
                    self.dropped[reason] += 1
                    on_dropped([{"doc_id": doc_id, "reason": reason, "n_tokens": len(ids)}])
                    continue
                self.cut += 1
                self.tokens += len(ids)
                ids_T = np.array(ids, np.int64)
                for number, start in enumerate(starts):
                    part_T = ids_T[start : start + self.lengths.content]
                    inside = self.tokenizer.decode(part_T.tolist())
                    yield Window(doc_id, source, number, start, part_T, inside)

    def _encode(self, text: str) -> tuple[list[int], np.ndarray]:
        """Token ids, and the positions at which paragraphs begin, as far as they are known."""
        encoded = self.tokenizer.encode_with_spans([text])
        if encoded is None:
            return self.tokenizer.encode([text])[0], np.zeros(0, np.int64)
        ((ids, spans),) = encoded
        return ids, paragraph_starts(text, spans)


@dataclass(frozen=True, eq=False)
class Scored:
    """A row of the table `windows` without its reason, and its rows of `evidence`."""

    row: dict[str, Any]
    evidence: list[dict[str, Any]]


def score_all(
    windows: Iterable[Window],
    scorer: Scorer,
    lengths: WindowLengths,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Scored]:
    """Score the windows in their order, `WINDOWS_PER_BATCH` at once.

    on_progress: called with the tokens of each forward pass.
    """
    remaining = iter(windows)
    while some := list(islice(remaining, WINDOWS_PER_BATCH)):
        scores = score_windows(
            some, scorer, lengths.bos_ids, (lengths.long, lengths.short), on_progress
        )
        for window, of_window in zip(some, scores, strict=True):
            yield _scored(window, of_window, len(lengths.bos_ids))


def _scored(window: Window, scores: WindowScores, offset: int) -> Scored:
    evidence = list(evidence_rows(window.window_id, window.token_ids_T, scores, offset))
    row = {
        "window_id": window.window_id,
        "doc_id": window.doc_id,
        "source": window.source,
        "start": window.start,
        "end": window.start + len(window.token_ids_T),
        "gain": information_gain(scores),
        "surprisal_long": float(np.nanmean(scores.long_T)),
        "surprisal_short": float(np.nanmean(scores.short_T)),
        "gzip_ratio": gzip_ratio(window.text),
        "key_tokens": len(evidence),
    }
    return Scored(row, evidence)


def sample_row(window: Window, bos_ids: Sequence[int]) -> dict[str, Any]:
    """The row of the table `samples` of a kept window."""
    return {
        "window_id": window.window_id,
        "doc_id": window.doc_id,
        "source": window.source,
        "start": window.start,
        "input_ids": [*bos_ids, *window.token_ids_T.tolist()],
    }

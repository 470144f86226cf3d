"""The choice of root documents: a draw by hash, then a length that can be scored."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from entropylong_assets.stages.entropy.settings import RootSettings

TOO_SHORT, TOO_LONG = "too_short_for_root", "too_long_for_root"
TOO_LONG_FOR_MODEL = "too_long_for_model"

COLUMNS = ["doc_id", "text", "source"]
"""Columns of the documents that the choice reads."""


def root_hash(doc_id: str, seed: int) -> int:
    """Return the 64-bit number that decides whether a document is drawn: the lowest are."""
    digest = hashlib.blake2b(f"root:{seed}:{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def is_drawn(doc_id: str, seed: int, fraction: float) -> bool:
    """Return whether a document is drawn: by seed and id alone, `fraction` of all documents."""
    return root_hash(doc_id, seed) < fraction * 2**64


def drawn_share(settings: RootSettings, source: str, corpus_rows: int) -> float:
    """Return the share of a source's documents that are drawn as roots.

    corpus_rows: rows of the corpus when the shard was registered; read only if the settings wish
    for a number of roots.
    """
    if source in settings.fraction_by_source:
        return settings.fraction_by_source[source]
    number = settings.wished_number
    if number is not None:
        return min(1.0, number / max(corpus_rows, 1))
    return settings.fraction or 0.0


def draw(
    documents: pl.DataFrame, settings: RootSettings, seed: int, corpus_rows: int
) -> pl.DataFrame:
    """Return the drawn documents, in their order.

    documents: at least doc_id and source. corpus_rows: as `drawn_share` takes it.
    """
    shares = {
        source: drawn_share(settings, source, corpus_rows)
        for source in documents["source"].unique()
    }
    return documents.filter(
        pl.Series(
            [
                is_drawn(doc_id, seed, shares[source])
                for doc_id, source in documents.select("doc_id", "source").iter_rows()
            ],
            dtype=pl.Boolean,
        )
    )


class RootChoice:
    """Chooses the roots of one shard, and counts documents, drawn documents and drops."""

    def __init__(
        self, settings: RootSettings, seed: int, max_model_tokens: int, corpus_rows: int
    ) -> None:
        """max_model_tokens: longest root that the scoring model takes (tokens). corpus_rows: rows
        of the corpus when the shard was registered."""
        self._settings = settings
        self._seed = seed
        self._max_model_tokens = max_model_tokens
        self._corpus_rows = corpus_rows
        self.documents = self.drawn = 0
        self.reached = 0
        """Documents read when the last root was yielded, for progress."""
        self.dropped: Counter[str] = Counter()

    def roots(
        self,
        batches: Iterable[pl.DataFrame],
        encode: Callable[[Sequence[str]], list[list[int]]],
        on_dropped: Callable[[list[dict[str, Any]]], None],
    ) -> Iterator[tuple[str, list[int]]]:
        """Yield id and token ids of each root, in the order of the documents.

        batches: documents with `COLUMNS`. encode: texts to token ids; called for drawn documents
        only. on_dropped: called with rows of the table `dropped`.
        """
        for batch in batches:
            drawn = draw(batch, self._settings, self._seed, self._corpus_rows)
            self.documents += len(batch)
            self.drawn += len(drawn)
            token_ids = encode(drawn["text"].to_list())
            reasons = [self._reason_to_drop(len(ids)) for ids in token_ids]
            dropped = [
                {"root_id": doc_id, "reason": reason, "n_tokens": len(ids)}
                for doc_id, ids, reason in zip(drawn["doc_id"], token_ids, reasons, strict=True)
                if reason
            ]
            if dropped:
                self.dropped.update(str(row["reason"]) for row in dropped)
                on_dropped(dropped)
            before = self.documents - len(batch)
            rows = zip(drawn["doc_id"], token_ids, reasons, strict=True)
            for number, (doc_id, ids, reason) in enumerate(rows, 1):
                self.reached = before + len(batch) * number // len(drawn)
                if reason is None:
                    yield doc_id, ids
            self.reached = self.documents

    def why_none(self) -> str:
        """Return the reason why the shard has no root, and what to do. One line."""
        number = self._settings.wished_number
        asked = (
            f"roots.number {number:,} of {self._corpus_rows:,} rows"
            if number is not None
            else f"roots.fraction {self._settings.fraction:g}"
        )
        if not self.documents:
            return "no root: the shard has no document"
        if not self.drawn:
            return (
                f"no root: 0 of {self.documents:,} documents were drawn under {asked}; "
                "raise roots.number or roots.fraction"
            )
        limits = (
            f"roots.min_tokens is {self._settings.min_tokens:,}, roots.max_tokens "
            f"{self._settings.max_tokens:,}, and the model takes {self._max_model_tokens:,}"
        )
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(self.dropped.items()))
        return (
            f"no root: {self.drawn:,} of {self.documents:,} documents were drawn under {asked}, "
            f"but none has a suitable length ({reasons}; {limits} tokens); raise roots.number or "
            "roots.fraction, or change the limits"
        )

    def _reason_to_drop(self, n_tokens: int) -> str | None:
        if n_tokens < self._settings.min_tokens:
            return TOO_SHORT
        if n_tokens > self._settings.max_tokens:
            return TOO_LONG
        return TOO_LONG_FOR_MODEL if n_tokens > self._max_model_tokens else None

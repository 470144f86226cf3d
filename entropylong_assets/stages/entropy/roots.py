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


def is_drawn(doc_id: str, seed: int, fraction: float) -> bool:
    """Return whether a document is drawn: by seed and id alone, `fraction` of all documents."""
    digest = hashlib.blake2b(f"root:{seed}:{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def draw(documents: pl.DataFrame, settings: RootSettings, seed: int) -> pl.DataFrame:
    """Return the drawn documents, in their order. documents: at least doc_id and source."""
    by_source = settings.fraction_by_source
    return documents.filter(
        pl.Series(
            [
                is_drawn(doc_id, seed, by_source.get(source, settings.fraction))
                for doc_id, source in documents.select("doc_id", "source").iter_rows()
            ],
            dtype=pl.Boolean,
        )
    )


class RootChoice:
    """Chooses the roots of one shard, and counts documents, drawn documents and drops."""

    def __init__(self, settings: RootSettings, seed: int, max_model_tokens: int) -> None:
        """max_model_tokens: longest root that the scoring model takes (tokens)."""
        self._settings = settings
        self._seed = seed
        self._max_model_tokens = max_model_tokens
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
            drawn = draw(batch, self._settings, self._seed)
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

    def _reason_to_drop(self, n_tokens: int) -> str | None:
        if n_tokens < self._settings.min_tokens:
            return TOO_SHORT
        if n_tokens > self._settings.max_tokens:
            return TOO_LONG
        return TOO_LONG_FOR_MODEL if n_tokens > self._max_model_tokens else None

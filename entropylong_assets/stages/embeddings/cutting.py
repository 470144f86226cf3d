"""Cutting the documents of a shard, in threads or processes beside the one that embeds them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from entropylong_assets.stages.embeddings.chunking import (
    Chunk,
    CountTokens,
    chunk_document,
    chunk_ids,
)
from entropylong_assets.stages.embeddings.token_ids import IdMemory, TokenIds

_SCHEMA = {
    "chunk_id": pl.String,
    "doc_id": pl.String,
    "shard": pl.String,
    "source": pl.String,
    "chunk_number": pl.Int64,
    "start": pl.Int64,
    "end": pl.Int64,
    "n_embedder_tokens": pl.Int64,
    "text": pl.String,
}


class Workers(NamedTuple):
    """What cuts documents beside the thread that embeds."""

    number: int
    """0: that thread cuts them itself."""
    are_processes: bool = False


class Cut(NamedTuple):
    """The chunks of a batch of documents."""

    documents: int
    chunks: pl.DataFrame
    ids: np.ndarray | None
    """Token ids of all chunks, one after the other; None if the embedder has no use for them."""

    def token_ids(self) -> list[TokenIds] | None:
        """Return the ids of each chunk."""
        if self.ids is None:
            return None
        borders = accumulate(self.chunks["n_embedder_tokens"].to_list(), initial=0)
        return [self.ids[start:end] for start, end in pairwise(borders)]


@dataclass(frozen=True)
class Cutter:
    """Cuts documents into chunks; can be sent to another process if its functions can."""

    shard: str
    window_tokens: int
    min_chars: int
    """A shorter chunk is joined to a neighbour if both fit the window."""
    count_tokens: CountTokens
    new_id_memory: Callable[[], IdMemory] | None
    """Makes what keeps the token ids of a document; None if they are of no use."""

    def cut(self, documents: pl.DataFrame) -> Cut:
        """documents: doc_id, source, text."""
        rows: list[tuple[Any, ...]] = []
        token_ids: list[TokenIds] = []
        for doc_id, source, text in documents.select("doc_id", "source", "text").iter_rows():
            memory = self.new_id_memory() if self.new_id_memory else None
            count_tokens = memory.count_tokens if memory else self.count_tokens
            chunks = chunk_document(text, self.window_tokens, self.min_chars, count_tokens)
            rows += self._rows_of(doc_id, source, chunks)
            if memory is not None:
                token_ids += memory.of([chunk.text for chunk in chunks])
        frame = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
        ids = np.concatenate(token_ids) if token_ids else None
        return Cut(len(documents), frame, ids)

    def _rows_of(self, doc_id: str, source: str, chunks: list[Chunk]) -> Iterator[tuple[Any, ...]]:
        ids = chunk_ids(doc_id, chunks)
        for number, (chunk_id, chunk) in enumerate(zip(ids, chunks, strict=True)):
            place = (number, chunk.start, chunk.end, chunk.n_tokens, chunk.text)
            yield (chunk_id, doc_id, self.shard, source, *place)


def cut_ahead(
    cutter: Cutter, document_batches: Iterable[pl.DataFrame], workers: Workers
) -> Iterator[Cut]:
    """Yield the chunks of each batch of documents, in order, while the next ones are cut."""
    if workers.number == 0:
        yield from map(cutter.cut, document_batches)
        return
    pool, cut = _pool(cutter, workers)
    ahead: deque[Future[Cut]] = deque()
    try:
        for documents in document_batches:
            ahead.append(pool.submit(cut, documents))
            if len(ahead) > 2 * workers.number:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(cutter: Cutter, workers: Workers) -> tuple[Executor, Callable[[pl.DataFrame], Cut]]:
    if not workers.are_processes:
        return ThreadPoolExecutor(workers.number, "cut"), cutter.cut
    pool = ProcessPoolExecutor(
        workers.number,
        mp_context=get_context("spawn"),  # a fork would copy locks that threads hold
        initializer=_begin,
        initargs=(cutter,),
    )
    return pool, _cut_here


_cutter: Cutter


def _begin(cutter: Cutter) -> None:
    """Start a process that cuts."""
    global _cutter
    _cutter = cutter


def _cut_here(documents: pl.DataFrame) -> Cut:
    return _cutter.cut(documents)

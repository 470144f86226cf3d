"""Chunks and vectors of one shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from entropylong_assets.stages.embeddings.chunking import Chunk, chunk_document, chunk_ids
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.embedder import Embedder, VectorError
from entropylong_assets.stages.embeddings.token_ids import TokenIds
from entropylong_assets.storage.partition_writer import PartitionWriter


class _Cut(NamedTuple):
    """The chunks of a batch of documents."""

    documents: int
    rows: list[dict[str, Any]]
    token_ids: list[TokenIds] | None
    """Of each row; None if the embedder has no use for them."""


class ShardEmbedding:
    """Cuts the documents of one shard into chunks and embeds them, and counts what it did."""

    def __init__(self, shard: str, embedder: Embedder, min_chars: int) -> None:
        """min_chars: a shorter last chunk of a document joins the chunk before it, if it fits."""
        self._shard, self._embedder, self._min_chars = shard, embedder, min_chars
        self.schema = chunk_schema(embedder.dimension, embedder.identity)
        self.documents = self.chunks = self.tokens = 0

    def rows(
        self,
        document_batches: Iterable[pl.DataFrame],
        writer: PartitionWriter | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows of the vector table; write the places of the chunks to the table `chunks`.

        writer: None if the places are known, as those of documents that are embedded again.
        document_batches: doc_id, source, text. on_progress: called with numbers of finished chunks.
        """
        for cut in self._cut(document_batches):
            self.documents += cut.documents
            self.chunks += len(cut.rows)
            self.tokens += sum(row["n_embedder_tokens"] for row in cut.rows)
            if not cut.rows:
                continue
            frame = pl.DataFrame(cut.rows, schema_overrides={"text": pl.String})
            if writer is not None:
                writer.append("chunks", frame)
            yield from self._with_vectors(frame, cut.token_ids).to_batches()
            on_progress(len(cut.rows))

    def _cut(self, document_batches: Iterable[pl.DataFrame]) -> Iterator[_Cut]:
        """Yield the chunks of each batch of documents, in order.

        Threads cut the next batches while the device embeds one, if the tokenizer allows.
        """
        threads = self._embedder.cutting_threads
        if threads == 0:
            yield from map(self._cut_batch, document_batches)
            return
        pool = ThreadPoolExecutor(threads, "cut")
        ahead: deque[Future[_Cut]] = deque()
        try:
            for documents in document_batches:
                ahead.append(pool.submit(self._cut_batch, documents))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _cut_batch(self, documents: pl.DataFrame) -> _Cut:
        rows: list[dict[str, Any]] = []
        token_ids: list[TokenIds] = []
        for doc_id, source, text in documents.select("doc_id", "source", "text").iter_rows():
            memory = self._embedder.id_memory()
            count_tokens = (memory or self._embedder).count_tokens
            chunks = chunk_document(
                text, self._embedder.window_tokens, self._min_chars, count_tokens
            )
            rows += self._rows_of(doc_id, source, chunks)
            if memory is not None:
                token_ids += memory.of([chunk.text for chunk in chunks])
        return _Cut(len(documents), rows, token_ids if len(token_ids) == len(rows) else None)

    def _rows_of(
        self, doc_id: str, source: str, chunks: Sequence[Chunk]
    ) -> Iterator[dict[str, Any]]:
        ids = chunk_ids(doc_id, chunks)
        for number, (chunk_id, chunk) in enumerate(zip(ids, chunks, strict=True)):
            yield {
                "chunk_id": chunk_id,
                "doc_id": doc_id,
                "shard": self._shard,
                "source": source,
                "chunk_number": number,
                "start": chunk.start,
                "end": chunk.end,
                "n_embedder_tokens": chunk.n_tokens,
                "text": chunk.text,
            }

    def _with_vectors(self, frame: pl.DataFrame, token_ids: list[TokenIds] | None) -> pa.Table:
        try:
            vectors_BE = self._embedder.embed_documents(
                frame["text"].to_list(), frame["n_embedder_tokens"].to_list(), token_ids
            )
        except VectorError as error:
            chunk = frame.row(error.position, named=True)
            raise VectorError(
                f"chunk {chunk['chunk_id']} (source {chunk['source']}, characters "
                f"{chunk['start']:,} to {chunk['end']:,} of document {chunk['doc_id']}): {error}",
                error.position,
            ) from None
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_BE.reshape(-1)), vectors_BE.shape[1]
        )
        names = [name for name in self.schema.names if name != "vector"]
        columns = frame.select(names).to_arrow()
        return columns.append_column("vector", values).cast(self.schema)

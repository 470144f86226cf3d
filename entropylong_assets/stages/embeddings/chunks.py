"""Chunks and vectors of one shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.cutting import Cut, Cutter, cut_ahead, join_cuts
from entropylong_assets.stages.embeddings.embedder import Embedder, VectorError
from entropylong_assets.storage.partition_writer import PartitionWriter

_BATCHES_JOINED = 2
"""Batches of the device for which chunks are gathered: texts of similar length then share one."""


class ShardEmbedding:
    """Cuts the documents of one shard into chunks and embeds them, and counts what it did."""

    def __init__(self, shard: str, embedder: Embedder, min_chars: int) -> None:
        """min_chars: a shorter last chunk of a document joins the chunk before it, if it fits."""
        self._shard, self._embedder = shard, embedder
        self._cutter = Cutter(embedder.window_tokens, min_chars, embedder.counting, embedder.ids_of)
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
        for cut, vectors_BE in self._embedded(self.cuts(document_batches)):
            self.documents += cut.documents
            self.chunks += len(cut.chunks)
            self.tokens += int(cut.chunks["n_embedder_tokens"].sum())
            if cut.chunks.is_empty():
                continue
            if writer is not None:
                writer.append("chunks", cut.chunks)
            yield from self._with_vectors(cut.chunks, vectors_BE).to_batches()
            on_progress(len(cut.chunks))

    def cuts(self, document_batches: Iterable[pl.DataFrame]) -> Iterator[Cut]:
        """Yield the chunks of each batch of documents, in order."""
        return cut_ahead(self._cutter, self._shard, document_batches, self._embedder.cutting)

    def _embedded(self, cuts: Iterable[Cut]) -> Iterator[tuple[Cut, NDArray[np.float32]]]:
        """Yield each batch with its vectors, float32 [B, E].

        Threads embed the next batches while the rows of one are written.
        """
        waiting: deque[tuple[Cut, Future[NDArray[np.float32]]]] = deque()
        threads = self._embedder.embedding_threads
        pool = ThreadPoolExecutor(threads, "embed")
        try:
            for cut in join_cuts(cuts, _BATCHES_JOINED * self._embedder.batches.tokens):
                waiting.append((cut, pool.submit(self._embed, cut)))
                if len(waiting) > threads + 1:  # one more waits for a thread
                    first, vectors = waiting.popleft()
                    yield first, vectors.result()
            while waiting:
                first, vectors = waiting.popleft()
                yield first, vectors.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _embed(self, cut: Cut) -> NDArray[np.float32]:
        try:
            return self._embedder.embed_documents(
                cut.chunks["text"].to_list(),
                cut.chunks["n_embedder_tokens"].to_list(),
                cut.token_ids(),
            )
        except VectorError as error:
            chunk = cut.chunks.row(error.position, named=True)
            raise VectorError(
                f"chunk {chunk['chunk_id']} (source {chunk['source']}, characters "
                f"{chunk['start']:,} to {chunk['end']:,} of document {chunk['doc_id']}): {error}",
                error.position,
            ) from None

    def _with_vectors(self, frame: pl.DataFrame, vectors_BE: NDArray[np.float32]) -> pa.Table:
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_BE.reshape(-1)), vectors_BE.shape[1]
        )
        names = [name for name in self.schema.names if name != "vector"]
        columns = frame.select(names).to_arrow()
        return columns.append_column("vector", values).cast(self.schema)

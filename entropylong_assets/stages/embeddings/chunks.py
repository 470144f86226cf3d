"""Chunks and vectors of one shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import polars as pl
import pyarrow as pa

from entropylong_assets.stages.embeddings.chunking import chunk_document, chunk_ids
from entropylong_assets.stages.embeddings.embedder import Embedder
from entropylong_assets.storage.tables import PartitionWriter


def embed_documents(
    document_batches: Iterable[pl.DataFrame],
    shard: str,
    embedder: Embedder,
    min_chars: int,
    schema: pa.Schema,
    writer: PartitionWriter,
    counts: Counter[str],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[pa.RecordBatch]:
    """Rows of the LanceDB table, batch by batch; their places go to the table `chunks`.

    document_batches: doc_id, source, text. `counts` gathers documents, chunks and tokens;
    `on_progress` gets finished chunks.
    """
    for documents in document_batches:
        rows: list[dict[str, Any]] = []
        for doc_id, source, text in documents.select("doc_id", "source", "text").iter_rows():
            chunks = chunk_document(text, embedder.window_tokens, min_chars, embedder.count_tokens)
            for number, (chunk_id, chunk) in enumerate(
                zip(chunk_ids(doc_id, chunks), chunks, strict=True)
            ):
                rows.append(
                    {
                        "chunk_id": chunk_id,
                        "doc_id": doc_id,
                        "shard": shard,
                        "source": source,
                        "chunk_number": number,
                        "start": chunk.start,
                        "end": chunk.end,
                        "n_embedder_tokens": chunk.n_tokens,
                        "text": chunk.text,
                    }
                )
        counts["documents"] += len(documents)
        counts["chunks"] += len(rows)
        counts["embedder_tokens"] += sum(row["n_embedder_tokens"] for row in rows)
        if not rows:
            continue
        frame = pl.DataFrame(rows, schema_overrides={"text": pl.String})
        writer.append("chunks", frame)
        vectors_BE = embedder.embed(frame["text"].to_list())
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_BE.reshape(-1)), vectors_BE.shape[1]
        )
        columns = frame.select([name for name in schema.names if name != "vector"]).to_arrow()
        table = columns.append_column("vector", values).cast(schema)
        on_progress(len(rows))
        yield from table.to_batches()

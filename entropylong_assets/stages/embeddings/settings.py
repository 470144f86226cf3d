"""Settings of the embedder, the table of chunks and its index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from entropylong_assets.settings.section import Section


class EmbeddingSettings(Section):
    """`chunk_embeddings` and `embedding_index`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence transformer: hub id, folder, or `pkg://<package>/<folder>`."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off: a model that needs it is refused."""
    query_prompt: str | None = None
    """Text put before every query, e.g. `"query: "`; none: the model's own. `""`: no prompt."""
    document_prompt: str | None = None
    """Text put before every chunk when it is embedded, e.g. `"passage: "`; none: the model's own.
    `""`: no prompt. It takes part of the window."""
    query_task: str | None = None
    """Task (adapter or route) for queries, of models that have tasks; none: the model's own."""
    document_task: str | None = None
    """Task (adapter or route) for chunks, of models that have tasks; none: the model's own."""
    dimensions: int | None = Field(None, ge=1)
    """Keep this many first dimensions of each vector, at unit length again, for models with
    Matryoshka training; none: as many as the model gives. Fewer take less memory and disk."""
    chunk_tokens: int | None = Field(None, ge=16)
    """Longest chunk (tokens of the embedder, prompt and special tokens included); none: its whole
    window, or 512 for a model that takes texts of any length."""
    min_chunk_chars: int = Field(64, ge=1)
    """A shorter chunk of a document is joined to a neighbour if the two fit the window."""
    batch_size: int | None = Field(None, ge=1)
    """Texts embedded at once; none: as many as the memory of the device allows, at most 64 texts
    of 256 tokens on a CPU and 1,024 on CUDA. A batch that does not fit into memory is halved."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    search: Literal["auto", "index", "exact"] = "auto"
    """`exact`: all vectors are compared, in blocks, on `device`; practical up to some 10 million
    chunks. `index`: an index nominates. `auto`: exact below `ann_min_rows`, else by index."""
    ann_min_rows: int = Field(100_000, ge=256)
    """`auto` builds an index for at least this many chunks."""
    index: Literal["ivf_flat", "ivf_sq", "ivf_rq"] = "ivf_flat"
    """What the index holds of each vector: all of it, a byte per dimension, or about a bit per
    dimension, for tables of which no more fits into memory. The table itself keeps the vectors."""
    target_recall: float = Field(0.95, gt=0, le=1)
    """Recall@K against exact search; probes and refine factor of the index are raised until it is
    reached."""
    recall_queries: int = Field(100, ge=1)
    """Rows of the table used as queries to measure recall@K."""
    recall_k: int = Field(8, ge=1)
    """K of the measured recall@K (chunks): the largest `retrieval.top_k` that datasets over this
    corpus use."""
    text_index: bool = False
    """Index the words of all chunks too, for full-text search (`retrieval.text_candidates`)."""
    phrase_documents: int = Field(20_000, ge=0)
    """Maximum number of documents in which phrases are counted, to tell boilerplate from
    information (rule `genuine`). A larger corpus is sampled."""


QUERY_SETTINGS = tuple(
    f"corpus.embedding.{name}" for name in ("model", "dimensions", "query_prompt", "query_task")
)
"""Settings of a dataset that determine the vectors of its queries."""

"""Settings of the embedder, the table of chunks and its index."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from entropylong_assets.settings.section import Section, model_beside
from entropylong_assets.stages.dtypes import Dtype


class EmbeddingSettings(Section):
    """`chunk_embeddings` and `embedding_index`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence transformer: hub id, folder, or `pkg://<package>/<folder>`."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. If false, a model that needs it is refused."""
    query_prompt: str | None = None
    """Text put before every query, e.g. `"query: "`. `null`: the model's own prompt. `""`: no
    prompt."""
    document_prompt: str | None = None
    """Text put before every chunk when it is embedded, e.g. `"passage: "`. `null`: the model's own
    prompt. `""`: no prompt. A prompt takes part of the window."""
    query_task: str | None = None
    """Task (adapter or route) for queries, for models with tasks. `null`: the model's own
    default."""
    document_task: str | None = None
    """Task (adapter or route) for chunks, for models with tasks. `null`: the model's own
    default."""
    dimensions: int | None = Field(None, ge=1)
    """Number of leading dimensions of each vector that are kept and normalised again, for models
    with Matryoshka training. `null`: all. Fewer dimensions take less memory and disk."""
    chunk_tokens: int | None = Field(None, ge=16)
    """Maximum length of a chunk (tokens of the embedder, with prompt and special tokens). `null`:
    the embedder's window, or 512 for a model that takes texts of any length."""
    min_chunk_chars: int = Field(64, ge=1)
    """Minimum length of a chunk (characters). A shorter one is joined to a neighbour if both fit
    the window."""
    batch_size: int | None = Field(None, ge=1)
    """Number of texts embedded at once. `null`: as many as the memory of the device allows, at most
    64 texts of 256 tokens on a CPU and 1,024 on CUDA. A batch that does not fit into memory is
    halved."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Dtype = "auto"
    """Type of weights and activations. `auto`: bfloat16 on CUDA, float32 elsewhere. Vectors are
    normalised and stored in float32."""
    search: Literal["auto", "index", "exact"] = "auto"
    """`exact`: each query is compared with all vectors, in blocks, on `device`; practical up to
    about 10 million chunks. `index`: an approximate index is searched. `auto`: `exact` for fewer
    than `ann_min_rows` chunks, else `index`."""
    ann_min_rows: int = Field(100_000, ge=256)
    """Minimum number of chunks for which `search: auto` builds an index."""
    index: Literal["ivf_flat", "ivf_sq", "ivf_rq"] = "ivf_flat"
    """Type of the index. It holds each vector whole (`ivf_flat`), with one byte per dimension
    (`ivf_sq`) or with about one bit per dimension (`ivf_rq`). The smaller types are for indexes
    that would not fit into memory. The table keeps the whole vectors in any case."""
    index_generation: int = Field(0, ge=0)
    """Increase it by 1 to train the centroids of the index again and to rebuild all its segments.
    The check `centroids_fit` of `embedding_index` says when that is advisable."""
    target_recall: float = Field(0.95, gt=0, le=1)
    """Recall@K against exact search that the index must reach. Its probes and refine factor are
    raised until it does."""
    recall_queries: int = Field(100, ge=1)
    """Number of rows of the table that are used as queries to measure recall@K."""
    recall_k: int = Field(8, ge=1)
    """K of the measured recall@K (chunks): the largest `retrieval.top_k` that datasets over this
    corpus use."""
    text_index: bool = False
    """Also index the words of all chunks, for full-text search (`retrieval.text_candidates`)."""
    phrase_documents: int = Field(20_000, ge=0)
    """Maximum number of documents in which phrases are counted. The counts show rule `genuine`
    which wording is boilerplate. A larger corpus is sampled."""

    def located(self, folder: Path) -> Self:
        return self.with_located(folder, model=model_beside(folder, self.model))


QUERY_SETTINGS = tuple(
    f"corpus.embedding.{name}"
    for name in ("model", "dtype", "dimensions", "query_prompt", "query_task")
)
"""Settings of a dataset that determine the vectors of its queries."""

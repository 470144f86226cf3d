"""The index that a shard's candidates were searched in, opened for further searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from entropylong_assets.stages.embeddings.vector_table import VectorTable, search_of
from entropylong_assets.stages.retrieval.chunk_universe import ChunkUniverse, chunk_universe
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Partition

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.embedder import Embedder
    from entropylong_assets.stages.retrieval.search import SearchTable


class SearchedIndex(NamedTuple):
    """An index and what is needed to search it. `universe` holds the chunks that it covers."""

    embedder: Embedder
    table: VectorTable
    universe: ChunkUniverse
    search: SearchTable


def open_searched_index(partition: Partition) -> SearchedIndex:
    """Open the index that the candidates of this partition's shard were searched in.

    Raises TableError if the shard has no candidates or its index no longer exists.
    """
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import load_table

    searched = partition.store.summary(CANDIDATE_CONTEXTS, partition.shard)
    settings = partition.corpus.embedding
    embedder = load_embedder(settings)
    table = load_table(partition.store, embedder, searched.index)
    how = search_of(searched)
    return SearchedIndex(
        embedder,
        table,
        chunk_universe(table, searched.excluded_shards),
        lambda vectors_QE, limit: table.search(
            vectors_QE, limit, searched.excluded_shards, how, settings.device
        ),
    )

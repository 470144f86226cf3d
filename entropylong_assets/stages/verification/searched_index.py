"""The index that a shard's candidates were searched in, open for further searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.embeddings.embedder import Embedder, load_embedder
from entropylong_assets.stages.embeddings.table import ChunkTable, search_of
from entropylong_assets.stages.verification.controls import ChunkUniverse
from entropylong_assets.stages.verification.shard_verification import chunk_universe
from entropylong_assets.storage.tables import TableStore


class SearchedIndex(NamedTuple):
    embedder: Embedder
    table: ChunkTable
    universe: ChunkUniverse
    search: Callable[..., Any]
    """(query vectors, how many) to the nearest chunks that the shard was allowed to find."""


def open_searched_index(settings: Settings, shard: str) -> SearchedIndex:
    """Raises TableError where the shard has no candidates or its index is gone."""
    store = TableStore(settings.data_uri)
    embedder = load_embedder(settings.embedding)
    table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
    searched = store.require("candidate_contexts", shard).summary
    table.checkout(searched["index"])
    excluded = searched["excluded_shards"]
    how = search_of(searched)
    return SearchedIndex(
        embedder,
        table,
        chunk_universe(table, excluded),
        lambda vectors, limit: table.search(
            vectors, limit, excluded, how, settings.embedding.device
        ),
    )

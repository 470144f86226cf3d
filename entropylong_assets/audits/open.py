"""The indexed corpus, as `null_calibration` draws from it."""

from __future__ import annotations

from collections.abc import Sequence

from entropylong_assets.audits.null_calibration import Corpus
from entropylong_assets.embeddings.embedder import load_embedder
from entropylong_assets.embeddings.table import ChunkTable
from entropylong_assets.retrieval.search import nominate
from entropylong_assets.settings import Settings
from entropylong_assets.storage.tables import TableStore
from entropylong_assets.verification.shard import chunk_universe


def open_corpus(settings: Settings, shard: str) -> Corpus:
    """The index that the shard's candidates were searched in.

    Raises TableError where the shard has no candidates or its index is gone.
    """
    store = TableStore(settings.data_uri)
    embedder = load_embedder(settings.embedding)
    table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
    searched = store.require("candidate_contexts", shard).summary
    table.checkout(searched["index"])
    excluded = searched["excluded_shards"]
    universe = chunk_universe(table, excluded)
    nprobes = store.require("embedding_index").summary["nprobes"]

    def nearest(queries: Sequence[str], root_id: str, most: int) -> list[list[str]]:
        found = nominate(
            lambda vectors, limit: table.search(vectors, limit, excluded, nprobes),
            embedder.embed(queries),
            [root_id] * len(queries),
            most,
            universe.total,
        )
        by_query = {k[0]: v["chunk_id"].to_list() for k, v in found.group_by("query")}
        return [by_query.get(i, []) for i in range(len(queries))]

    return Corpus(
        universe,
        lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
        nearest,
    )

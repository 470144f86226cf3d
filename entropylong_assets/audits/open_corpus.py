"""Opening the indexed corpus from which `null_calibration` draws held-out controls."""

from __future__ import annotations

from collections.abc import Sequence

from entropylong_assets.audits.null_contexts import Corpus
from entropylong_assets.stages.retrieval.search import nominate
from entropylong_assets.stages.retrieval.searched_index import open_searched_index
from entropylong_assets.stages.stage import Partition


def open_corpus(partition: Partition) -> Corpus:
    """Open the index that the shard's candidates were searched in.

    Raises TableError if the shard has no candidates or its index no longer exists.
    """
    index = open_searched_index(partition)

    def nearest(queries: Sequence[str], root_id: str, limit: int) -> list[list[str]]:
        candidates = nominate(
            index.search,
            index.embedder.embed_queries(queries),
            [root_id] * len(queries),
            limit,
            index.universe.total,
        )
        by_query = {k[0]: v["chunk_id"].to_list() for k, v in candidates.group_by("query")}
        return [by_query.get(i, []) for i in range(len(queries))]

    return Corpus(
        index.universe,
        lambda ids: index.table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
        nearest,
    )

"""The indexed corpus, as `null_calibration` draws from it."""

from __future__ import annotations

from collections.abc import Sequence

from entropylong_assets.audits.null_calibration import Corpus
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.retrieval.search import nominate
from entropylong_assets.stages.verification.searched_index import open_searched_index


def open_corpus(settings: Settings, shard: str) -> Corpus:
    """The index that the shard's candidates were searched in.

    Raises TableError where the shard has no candidates or its index is gone.
    """
    index = open_searched_index(settings, shard)

    def nearest(queries: Sequence[str], root_id: str, most: int) -> list[list[str]]:
        found = nominate(
            index.search,
            index.embedder.embed(queries),
            [root_id] * len(queries),
            most,
            index.universe.total,
        )
        by_query = {k[0]: v["chunk_id"].to_list() for k, v in found.group_by("query")}
        return [by_query.get(i, []) for i in range(len(queries))]

    return Corpus(
        index.universe,
        lambda ids: index.table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
        nearest,
    )

"""Which documents the index does not hold, and bringing them back.

Two kinds of documents are deleted from the vector table when the index is made: copies of a
document in other shards than its owner's, and members of clusters of near-duplicates. A new shard
never brings one back. A changed threshold does, and so does an owner or representative that goes
away: such documents are cut into chunks and embedded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.chunks import ShardEmbedding
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.embeddings.vector_table import WritableVectorTable
from entropylong_assets.stages.near_duplicates.tables import NEAR_DUPLICATES
from entropylong_assets.storage import duck
from entropylong_assets.storage.removals import find_removed
from entropylong_assets.storage.tables import MANIFEST, WHOLE, TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.embedder import Embedder

# Of every document in several shards, the copies that are not indexed. DuckDB groups on disk what
# does not fit into its memory.
_DUPLICATES = """
WITH copies AS (
    SELECT doc_id, shard, position, count(*)::INTEGER AS n_chunks
    FROM {chunks} AS chunks JOIN plan ON plan.file = chunks.filename
    GROUP BY doc_id, shard, position
),
several AS (SELECT doc_id FROM copies GROUP BY doc_id HAVING count(*) > 1)
SELECT doc_id, shard, first_value(shard) OVER (PARTITION BY doc_id ORDER BY position) AS owner,
       n_chunks
FROM copies SEMI JOIN several USING (doc_id)
QUALIFY shard <> owner
ORDER BY doc_id, shard
"""

_MEMBERS = """
SELECT doc_id, shard, representative, count(*)::INTEGER AS n_chunks
FROM {chunks} AS chunks JOIN plan ON plan.file = chunks.filename JOIN members USING (doc_id)
GROUP BY doc_id, shard, representative
ORDER BY doc_id, shard
"""

_DOCUMENTS_PER_BATCH = 64


@dataclass(frozen=True, eq=False)
class Removal:
    """Documents of the indexed shards that the index does not hold."""

    duplicates: pl.DataFrame
    """doc_id, shard, owner, n_chunks: rows of the table `duplicates`."""
    near_copies: pl.DataFrame
    """doc_id, shard, representative, n_chunks: rows of the table `near_copies`."""

    @property
    def documents(self) -> pl.DataFrame:
        """doc_id, shard and n_chunks of all, each once: a member may have copies too."""
        columns = ["doc_id", "shard", "n_chunks"]
        parts = [self.duplicates.select(columns), self.near_copies.select(columns)]
        return pl.concat(parts).unique(["doc_id", "shard"], maintain_order=True)


def find_duplicates(store: TableStore, positions: Mapping[str, int]) -> pl.DataFrame:
    """Find documents that occur in several shards, and the shard whose copy is indexed.

    positions: place in the plan of each shard that is indexed. The owner is the shard that was
    registered first, so it depends on the plan alone. Columns as in the table `duplicates`: doc_id,
    shard, owner, n_chunks.

    Raises TableError if a table is missing or damaged, ConnectionError if the store does not
    answer.
    """
    return _select(_DUPLICATES, store, positions, {}, "owner")


def find_near_duplicates(store: TableStore, positions: Mapping[str, int]) -> pl.DataFrame:
    """Find the members of clusters of near-duplicates in these shards.

    Columns as in the table `near_copies`. Raises the errors of `find_duplicates`.
    """
    members: Mapping[str, duck.View] = {"members": (NEAR_DUPLICATES, [WHOLE], "members")}
    if store.manifest(NEAR_DUPLICATES) is None:
        positions = {}
    return _select(_MEMBERS, store, positions, members, "representative")


def _select(
    query: str,
    store: TableStore,
    positions: Mapping[str, int],
    views: Mapping[str, duck.View],
    instead: str,
) -> pl.DataFrame:
    if not positions:
        text = dict.fromkeys(("doc_id", "shard", instead), pl.String)
        return pl.DataFrame(schema={**text, "n_chunks": pl.Int32})
    files = [duck.file_name(store, CHUNK_EMBEDDINGS, shard, "chunks") for shard in positions]
    plan = {"file": files, "shard": list(positions), "position": list(positions.values())}
    read: dict[str, duck.View] = {"chunks": (CHUNK_EMBEDDINGS, list(positions), "chunks")}
    with (
        duck.reporting_damage(store, {**read, **views}),
        duck.connect(store, {**views, "plan": pl.DataFrame(plan)}) as session,
    ):
        sql = query.format(chunks=duck.parquet(files))
        found = pl.from_arrow(session.sql(sql).to_arrow_table())
    assert isinstance(found, pl.DataFrame)
    return found


def find_removal(store: TableStore, positions: Mapping[str, int]) -> Removal:
    """Find all documents of these shards that are not indexed."""
    return Removal(find_duplicates(store, positions), find_near_duplicates(store, positions))


def delete_documents(table: WritableVectorTable, removal: Removal) -> None:
    """Delete what is not indexed from the table."""
    for (shard,), documents in removal.documents.group_by("shard", maintain_order=True):
        table.delete_documents(str(shard), documents["doc_id"].to_list())


def remove_retired_shards(
    store: TableStore, table: WritableVectorTable, stored: Mapping[str, int]
) -> dict[str, int]:
    """Delete the rows of retired shards; return the rows of each remaining shard.

    stored: rows by shard. The manifest of the shard's embeddings is deleted first, so that a shard
    that is brought back is embedded again.
    """
    removed = find_removed(store)
    for shard in sorted(shard for shard in stored if removed.hides(shard)):
        manifest = f"{store.folder(CHUNK_EMBEDDINGS, shard)}/{MANIFEST}"
        if store.fs.exists(manifest):
            store.fs.rm(manifest)
        table.replace_shard(shard, ())
    return {shard: rows for shard, rows in stored.items() if not removed.hides(shard)}


def restore_documents(
    store: TableStore,
    table: WritableVectorTable,
    removal: Removal,
    shards: Sequence[str],
    embedder: Embedder,
    min_chunk_chars: int,
) -> int:
    """Embed documents again that the last index removed and this one holds; return their number.

    shards: those that are indexed. min_chunk_chars: as in the settings of the embedding.
    """
    if store.manifest(EMBEDDING_INDEX) is None:
        return 0
    key = ["doc_id", "shard"]
    before = pl.concat(
        store.read(EMBEDDING_INDEX, WHOLE, name, key) for name in ("duplicates", "near_copies")
    ).unique()
    returning = before.filter(pl.col("shard").is_in(list(shards))).join(
        removal.documents, on=key, how="anti"
    )
    restored = 0
    for (shard,), documents in returning.sort(key).group_by("shard", maintain_order=True):
        present = [batch["doc_id"] for batch in table.scan(["doc_id"], str(shard))]
        held = pl.concat([pl.Series("doc_id", [], pl.String), *present]).unique()
        missing = documents.join(held.to_frame(), on="doc_id", how="anti").select("doc_id")
        if len(missing):
            embedding = ShardEmbedding(str(shard), embedder, min_chunk_chars)
            texts = store.batches(
                CORPUS_DOCUMENTS, str(shard), "documents", ["doc_id", "source", "text"]
            )
            table.extend_shard(str(shard), embedding.rows(_only(texts, missing)))
            restored += embedding.documents
    return restored


def _only(batches: Iterator[pl.DataFrame], wanted: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for batch in batches:
        found = batch.join(wanted, on="doc_id", how="semi", maintain_order="left")
        yield from found.iter_slices(_DOCUMENTS_PER_BATCH)

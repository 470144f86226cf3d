from collections import Counter

import dagster as dg

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.health import blocking_checks, unhealthy_shards
from entropylong_assets.orchestration.metadata import Progress, materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import fingerprint
from entropylong_assets.stages.corpus.checks import corpus_checks
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.stages.embeddings.checks import chunk_checks
from entropylong_assets.storage.tables import WHOLE, TableError


@dg.asset(
    deps=["corpus_documents"],
    partitions_def=corpus_shard,
    kinds={"lancedb", "huggingface"},
    retry_policy=RETRIES,
    pool="lancedb_writer",
)
def chunk_embeddings(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Retrieval chunks of one shard, cut on line and sentence borders, with unit vectors.

    Text and vectors go to the LanceDB table in one commit, which replaces the shard's rows and no
    others.
    """
    from entropylong_assets.stages.embeddings.chunks import embed_documents
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import ChunkTable, chunk_schema

    shard, settings, store = context.partition_key, pipeline.settings, pipeline.store
    with plain_errors():
        upstream = store.require("corpus_documents", shard)
        embedder = load_embedder(settings.embedding)
        table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
        basis = determinants(
            "chunk_embeddings",
            settings,
            {"corpus_documents": upstream.data_version},
            embedder=embedder.identity,
        )
        progress = Progress(context, "chunks", None)
        counts: Counter[str] = Counter()
        with store.write(
            "chunk_embeddings", shard, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            documents = store.batches(
                "corpus_documents", shard, "documents", ["doc_id", "source", "text"], 64
            )
            schema = chunk_schema(embedder.dimension, embedder.identity)
            table.replace_shard(
                shard,
                embed_documents(
                    documents,
                    shard,
                    embedder,
                    settings.embedding.min_chunk_chars,
                    schema,
                    writer,
                    counts,
                    progress,
                ),
            )
            writer.summary |= {
                **counts,
                "dimension": embedder.dimension,
                "window_tokens": embedder.window_tokens,
                "embedder": embedder.identity,
            }
        manifest = store.require("chunk_embeddings", shard)
        chunks = store.head("chunk_embeddings", shard, "chunks")
    return materialised(
        manifest,
        "chunks",
        progress.seconds,
        **{"chunks per second": round(progress.rate, 1)},
        preview=preview(chunks),
    )


@dg.asset(
    deps=["chunk_embeddings"],
    kinds={"lancedb"},
    retry_policy=RETRIES,
    pool="lancedb_writer",
)
def embedding_index(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """One tagged version of the LanceDB table, over all healthy shards embedded so far.

    A shard with a blocking check of corpus_documents or chunk_embeddings that has not passed is
    left out, and named in the metadata with its check.

    Copies of a document in several shards are reduced to the one in the shard registered first.
    Small tables are searched exactly; larger ones get an index whose probes and refine factor are
    raised until the measured recall@K reaches its target (`embedding.search` chooses).
    """
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.index import index_shards

    settings, store = pipeline.settings, pipeline.store
    with plain_errors():
        embedder = load_embedder(settings.embedding)
        progress = Progress(context, "shards", None)
        positions = {shard.key: shard.position for shard in load_plan(store).shards}
        embedded = [s for s in store.shards("chunk_embeddings") if s in positions]
        gates = blocking_checks([corpus_checks, chunk_checks])
        left_out = unhealthy_shards(context.instance, gates, embedded)
        versions = {
            shard: store.require("chunk_embeddings", shard).data_version
            for shard in embedded
            if shard not in left_out
        }
        if embedded and not versions:
            first, why = next(iter(left_out.items()))
            raise TableError(
                f"embedding_index: none of {len(embedded)} embedded shards is healthy; the first, "
                f"{first}: {why}; see that check's page and materialise the shard again"
            )
        basis = determinants(
            "embedding_index", settings, versions, embedder=embedder.identity, plan=positions
        )
        tag = f"index-{fingerprint(basis)}"
        with store.write(
            "embedding_index", WHOLE, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            writer.summary |= index_shards(
                store, settings, embedder, positions, versions, tag, writer
            )
        manifest = store.require("embedding_index")
    context.log.info(f"indexed {len(versions)} shards as {tag}")
    for shard, why in left_out.items():
        context.log.warning(f"left out shard {shard}: {why}")
    return materialised(
        manifest,
        "shards",
        progress.seconds,
        **{"shards left out": len(left_out)},
        left_out=dg.MetadataValue.json(dict(left_out)),
    )

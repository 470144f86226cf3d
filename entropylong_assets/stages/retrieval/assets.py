import dagster as dg
import polars as pl

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import Progress, materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import fingerprint

QUERIES_EXACT = 32_768
"""Least anchors that are searched for together, where there are as many. An exact search reads the
whole table each time; an index answers 1,024 as fast as any number more (benchmarks/RESULTS.md).
"""
QUERIES_BY_INDEX = 1024


@dg.asset(
    deps=["entropy_scores", "embedding_index"],
    partitions_def=corpus_shard,
    kinds={"lancedb", "huggingface"},
    retry_policy=RETRIES,
)
def candidate_contexts(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """The K chunks most similar to the text around each anchor (paper, section 3.2).

    A candidate only nominates. Chunks of the root itself never come in, near-duplicates of it are
    refused by the leak guard and kept with the reason.
    """
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import ChunkTable, search_of
    from entropylong_assets.stages.entropy.model import load_tokenizer
    from entropylong_assets.stages.retrieval.candidates import (
        ROOTS_A_BATCH,
        find_candidates,
        gathered,
    )

    shard, settings, store = context.partition_key, pipeline.settings, pipeline.store
    with plain_errors():
        scores = store.require("entropy_scores", shard)
        index = store.require("embedding_index")
        embedder = load_embedder(settings.embedding)
        table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
        table.checkout(index.summary["tag"])
        basis = determinants(
            "candidate_contexts",
            settings,
            {"entropy_scores": scores.data_version, "embedding_index": index.data_version},
            embedder=embedder.identity,
            index=index.summary["tag"],
        )
        excluded, how = index.summary["excluded_shards"], search_of(index.summary)
        foreign = {
            doc_id
            for batch in store.batches("embedding_index", "all", "duplicates", ["doc_id", "shard"])
            for doc_id in batch.filter(pl.col("shard") == shard)["doc_id"]
        }
        anchors = store.batches("entropy_scores", shard, "roots", ["anchors"])
        progress = Progress(
            context, "anchors", sum(int(batch["anchors"].list.len().sum()) for batch in anchors)
        )
        columns = ["root_id", "token_ids", "anchors"]
        roots = store.batches("entropy_scores", shard, "roots", columns, ROOTS_A_BATCH)
        together = QUERIES_EXACT if how.search == "exact" else QUERIES_BY_INDEX

        with store.write(
            "candidate_contexts", shard, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            writer.summary |= find_candidates(
                gathered(roots, together),
                frozenset(foreign),
                load_tokenizer(settings.scoring),
                embedder,
                table,
                lambda vectors_QE, limit: table.search(
                    vectors_QE, limit, excluded, how, settings.embedding.device
                ),
                index.summary["n_rows"],
                settings.retrieval,
                writer,
                progress,
            )
            writer.summary |= {
                "index": index.summary["tag"],
                "excluded_shards": excluded,
                **how._asdict(),
            }
        manifest = store.require("candidate_contexts", shard)
        shown = store.head("candidate_contexts", shard, "candidates")
    return materialised(
        manifest,
        "candidates",
        progress.seconds,
        **{"anchors per second": round(progress.rate, 1)},
        preview=preview(shown),
    )

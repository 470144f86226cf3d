import time

import dagster as dg
import polars as pl

from entropylong_assets.automation.determinants import determinants
from entropylong_assets.automation.faults import RETRIES, plain_errors
from entropylong_assets.automation.partitions import corpus_shard
from entropylong_assets.automation.presentation import shard_links
from entropylong_assets.automation.resources import Pipeline
from entropylong_assets.automation.results import materialised, preview
from entropylong_assets.settings import fingerprint


@dg.asset(
    deps=["verified_dependencies", "entropy_scores"],
    partitions_def=corpus_shard,
    kinds={"parquet"},
    retry_policy=RETRIES,
)
def long_context_samples(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Samples of one exact length, packed from roots and their verified contexts.

    Beside the token ids stand the segments that tile each sample, and every dependency with its
    anchor, its context's span and the distance between them (paper, section 3.4).
    """
    from entropylong_assets.entropy.model import load_tokenizer
    from entropylong_assets.samples.pool import open_pool
    from entropylong_assets.samples.recipes import needs_pool
    from entropylong_assets.samples.shard import pack_shard

    shard, settings, store = context.partition_key, pipeline.settings, pipeline.store
    start = time.monotonic()
    with plain_errors():
        verified = store.require("verified_dependencies", shard)
        scores = store.require("entropy_scores", shard)
        tokenizer = load_tokenizer(settings.scoring)
        basis = determinants(
            "long_context_samples",
            settings,
            {"verified_dependencies": verified.data_version, "entropy_scores": scores.data_version},
        )
        with store.write(
            "long_context_samples", shard, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            writer.summary |= pack_shard(
                store.read("entropy_scores", shard, "roots", ["root_id", "token_ids"]),
                store.read("verified_dependencies", shard, "pairs"),
                store.read("verified_dependencies", shard, "contexts"),
                settings=settings,
                shard=shard,
                separator_ids=tokenizer.separator_ids,
                bos_id=tokenizer.bos_ids[0] if tokenizer.bos_ids else None,
                pad_id=tokenizer.pad_id,
                pool=open_pool(settings, shard) if needs_pool(settings) else None,
                writer=writer,
            )
        manifest = store.require("long_context_samples", shard)
        dependencies = store.read("long_context_samples", shard, "dependencies")
        origin = store.read("candidate_contexts", shard, "chunks", ["chunk_id", "shard"])
        passages = store.read("long_context_samples", shard, "passages", ["chunk_id", "shard"])
        origin = pl.concat([origin, passages]).unique("chunk_id", maintain_order=True)
        segments = store.read("long_context_samples", shard, "segments", ["sample_id", "chunk_id"])
    return materialised(
        manifest,
        "samples",
        time.monotonic() - start,
        samples_and_shards=dg.MetadataValue.md(
            shard_links(shard, segments.join(origin, "chunk_id"))
        ),
        preview=preview(dependencies.sort("gain", descending=True)),
    )

import time
from contextlib import ExitStack

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.presentation import shard_links
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import fingerprint
from entropylong_assets.storage.tables import TableStore


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
    from entropylong_assets.stages.entropy.model import load_tokenizer
    from entropylong_assets.stages.samples.pool import open_pool
    from entropylong_assets.stages.samples.recipes import needs_pool
    from entropylong_assets.stages.samples.shard_inputs import open_tables, stored
    from entropylong_assets.stages.samples.shard_packing import pack_shard

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
        with (
            ExitStack() as opened,
            store.write(
                "long_context_samples", shard, fingerprint=fingerprint(basis), determinants=basis
            ) as writer,
        ):
            tables = opened.enter_context(open_tables(store, stored(shard)))
            writer.summary |= pack_shard(
                tables,
                settings=settings,
                shard=shard,
                separator_ids=tokenizer.separator_ids,
                bos_id=tokenizer.bos_ids[0] if tokenizer.bos_ids else None,
                pad_id=tokenizer.pad_id,
                pool=open_pool(settings, shard) if needs_pool(settings) else None,
                writer=writer,
            )
        manifest = store.require("long_context_samples", shard)
        shown, links = _shown(store, shard)
    return materialised(
        manifest,
        "samples",
        time.monotonic() - start,
        samples_and_shards=dg.MetadataValue.md(links),
        preview=preview(shown),
    )


def _shown(store: TableStore, shard: str, samples: int = 20) -> tuple[pl.DataFrame, str]:
    """The strongest dependencies, and where the passages of the first samples come from."""
    asset = "long_context_samples"
    best = pl.DataFrame()
    for batch in store.batches(asset, shard, "dependencies"):
        best = pl.concat([best, batch]) if len(best) else batch
        best = best.sort("gain", descending=True, maintain_order=True).head(5)
    columns = ["sample_id", "chunk_id"]
    ids = store.read(asset, shard, "samples", ["sample_id"])["sample_id"]
    first = pl.col("sample_id").is_in(ids[:samples].to_list())
    parts = [
        batch.filter(first).drop_nulls()
        for batch in store.batches(asset, shard, "segments", columns)
    ]
    segments = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    origin = [
        batch.join(segments.select("chunk_id").unique(), "chunk_id", how="semi")
        for table_of, table in (("candidate_contexts", "chunks"), (asset, "passages"))
        if table in store.require(table_of, shard).tables
        for batch in store.batches(table_of, shard, table, ["chunk_id", "shard"])
    ]
    if not origin:
        return best, ""
    origins = pl.concat(origin).unique("chunk_id", maintain_order=True)
    return best, shard_links(shard, segments.join(origins, "chunk_id"), len(ids))

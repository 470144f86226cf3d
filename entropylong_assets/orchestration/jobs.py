"""Named jobs for the usual acts. Assets over all shards have jobs of their own: in a partitioned
job they would run once a partition."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from entropylong_assets.orchestration.partitions import PIPELINE, corpus_shard

_HOUR = 3600

AUDITS = ("null_calibration", "cross_model_audit", "long_range_audit")


def _job(
    name: str, description: str, assets: tuple[str, ...], hours: int, *, partitioned: bool = True
) -> UnresolvedAssetJobDefinition:
    """`hours`: a run that takes longer is ended and its partition failed."""
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*assets),
        description=description,
        partitions_def=corpus_shard if partitioned else None,
        tags={"dagster/max_runtime": str(hours * _HOUR)},
    )


ingest = _job(
    "ingest",
    "Reads shards of the corpus and embeds their chunks.",
    ("corpus_documents", "chunk_embeddings"),
    12,
)
index = _job(
    "index",
    "Takes all healthy embedded shards into the index, once for a batch of shards.",
    ("embedding_index",),
    12,
    partitioned=False,
)
score = _job("score", "Scores roots and finds their anchors.", ("entropy_scores",), 24)
verify = _job(
    "verify",
    "Nominates contexts for all anchors and verifies them. Needs embedding_index.",
    ("candidate_contexts", "verified_dependencies"),
    48,
)
assemble = _job("assemble", "Packs samples.", ("long_context_samples",), 6)
build_samples = _job(
    "build_samples",
    "From scores to samples: all that follows embedding_index.",
    ("entropy_scores", "candidate_contexts", "verified_dependencies", "long_context_samples"),
    72,
)
export = _job(
    "export",
    "Exports the samples of all healthy shards for trainers, and writes the report.",
    ("training_dataset",),
    12,
    partitioned=False,
)
everything = _job(
    "everything",
    "One shard from its file to samples, the index included. For many shards rather backfill "
    "`ingest`, run `index` once, and backfill `build_samples`: here the index is made for each.",
    PIPELINE,
    72,
)

audit = _job(
    "audit",
    "Proof on a sample of each shard: chance of acceptance, a second model, every recipe.",
    AUDITS,
    24,
)

jobs = [ingest, score, verify, assemble, build_samples, index, export, everything, audit]

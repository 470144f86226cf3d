"""Named jobs for the usual acts. Assets over all shards have jobs of their own: in a partitioned
job they would run once a partition."""

from __future__ import annotations

import dagster as dg

from entropylong_assets.automation.partitions import corpus_shard

_STAGES = {
    "ingest": (
        "Reads shards of the corpus and embeds their chunks.",
        ["corpus_documents", "chunk_embeddings"],
    ),
    "score": ("Scores roots and finds their anchors.", ["entropy_scores"]),
    "verify": (
        "Nominates contexts for all anchors and verifies them. Needs embedding_index.",
        ["candidate_contexts", "verified_dependencies"],
    ),
    "assemble": ("Packs samples.", ["long_context_samples"]),
    "build_samples": (
        "From scores to samples: all that follows embedding_index.",
        ["entropy_scores", "candidate_contexts", "verified_dependencies", "long_context_samples"],
    ),
}

jobs = [
    *(
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*assets),
            description=description,
            partitions_def=corpus_shard,
        )
        for name, (description, assets) in _STAGES.items()
    ),
    dg.define_asset_job(
        "index",
        selection=dg.AssetSelection.assets("embedding_index"),
        description="Takes all embedded shards into the index, once for a batch of shards.",
    ),
]

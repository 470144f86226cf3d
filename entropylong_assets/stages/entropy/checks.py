from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck

_FOLDER = Path(__file__).parent / "checks"


def _views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:
    return {
        "documents": ("corpus_documents", [shard], "documents"),
        "roots": ("entropy_scores", [shard], "roots"),
        "dropped": ("entropy_scores", [shard], "dropped"),
        "summary": duck.summary(pipeline.store, "entropy_scores", shard, ["vocab_size"]),
    }


entropy_checks = sql_checks(
    "entropy_scores",
    _FOLDER,
    [
        SqlCheck("roots_reconcile", "Roots chosen = roots scored + roots dropped."),
        SqlCheck("one_entropy_per_token", "As many entropies and surprisals as tokens."),
        SqlCheck("entropies_in_range", "0 ≤ H ≤ ln|V|, finite, one for every prefix."),
        SqlCheck("anchors_recomputed", "μ, σ, τ and anchors follow from the entropies."),
    ],
    _views,
    lambda s: s.entropy.model_dump(),
)

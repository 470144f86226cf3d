from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck

_FOLDER = Path(__file__).parent / "checks"


def _views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:  # noqa: ARG001
    return {
        "roots": ("entropy_scores", [shard], "roots"),
        "queries": ("candidate_contexts", [shard], "queries"),
        "candidates": ("candidate_contexts", [shard], "candidates"),
        "chunks": ("candidate_contexts", [shard], "chunks"),
        "dropped": ("candidate_contexts", [shard], "dropped"),
    }


candidate_checks = sql_checks(
    "candidate_contexts",
    _FOLDER,
    [
        SqlCheck("anchors_reconcile", "Anchors = anchors with candidates + anchors dropped."),
        SqlCheck("ranks_without_gap", "Ranks run from 1 to K without a gap or a repeat."),
        SqlCheck("no_own_chunk", "No candidate is a chunk of the root itself."),
        SqlCheck("guard_consistent", "The leak guard refuses what it says it refuses."),
        SqlCheck("similarities_ordered", "Similarities are cosines and fall with the rank."),
    ],
    _views,
    lambda s: s.retrieval.model_dump(),
)

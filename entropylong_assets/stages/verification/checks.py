from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck

_FOLDER = Path(__file__).parent / "checks"


def _views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:
    figures = [
        "vocab_size",
        "false_acceptance",
        "false_acceptance_low",
        "false_acceptance_high",
    ]
    return {
        "roots": ("entropy_scores", [shard], "roots"),
        "candidates": ("candidate_contexts", [shard], "candidates"),
        "pairs": ("verified_dependencies", [shard], "pairs"),
        "controls": ("verified_dependencies", [shard], "controls"),
        "summary": duck.summary(pipeline.store, "verified_dependencies", shard, figures),
    }


verification_checks = sql_checks(
    "verified_dependencies",
    _FOLDER,
    [
        SqlCheck("pairs_reconcile", "Every candidate has one pair with a verdict."),
        SqlCheck("scores_match_roots", "Scores before are those of entropy_scores."),
        SqlCheck("entropies_behind_in_range", "Scores behind contexts and controls are sound."),
        SqlCheck("verdicts_recomputed", "ΔI, ΔI* and verdicts follow from scores, rule and ε."),
        SqlCheck(
            "controls_averaged",
            "Every scored anchor has its controls.",
            blocking=False,
            severity=dg.AssetCheckSeverity.WARN,
        ),
        SqlCheck(
            "false_acceptance_low",
            "Few random contexts would be accepted.",
            blocking=False,
            severity=dg.AssetCheckSeverity.WARN,
        ),
    ],
    _views,
    lambda s: s.verification.model_dump(),
)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck

_FOLDER = Path(__file__).parent / "checks"
_WARN = dg.AssetCheckSeverity.WARN


def _null_views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:  # noqa: ARG001
    return {name: ("null_calibration", [shard], name) for name in ("trials", "rates")}


def _second_views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:  # noqa: ARG001
    return {
        "audited": ("cross_model_audit", [shard], "pairs"),
        "pairs": ("verified_dependencies", [shard], "pairs"),
    }


def _long_views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:  # noqa: ARG001
    names = ("anchors", "windows", "dependencies")
    return {name: ("long_range_audit", [shard], name) for name in names}


audit_checks = [
    sql_checks(
        "null_calibration",
        _FOLDER,
        [
            SqlCheck("null_gains_recomputed", "Gains of held-out controls follow from scores."),
            SqlCheck("null_rates_recounted", "Rates are shares of the trials."),
            SqlCheck(
                "chance_below_retrieved",
                "Random contexts pass less often than retrieved ones.",
                blocking=False,
                severity=_WARN,
            ),
        ],
        _null_views,
        lambda s: s.verification.model_dump(),
    ),
    sql_checks(
        "cross_model_audit",
        _FOLDER,
        [SqlCheck("second_gains_recomputed", "The second model's gains follow from its scores.")],
        _second_views,
        lambda s: s.verification.model_dump(),
    ),
    sql_checks(
        "long_range_audit",
        _FOLDER,
        [
            SqlCheck("windows_within_budget", "Recipes are compared on whole windows."),
            SqlCheck("in_place_scores_sound", "Scores in place are sound."),
        ],
        _long_views,
        lambda s: s.verification.model_dump(),
    ),
]

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.settings.model import Settings
from entropylong_assets.storage import duck

_FOLDER = Path(__file__).parent / "checks"


def _views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:
    asset = "long_context_samples"
    return {
        "roots": ("entropy_scores", [shard], "roots"),
        "pairs": ("verified_dependencies", [shard], "pairs"),
        "contexts": ("verified_dependencies", [shard], "contexts"),
        "passages": pipeline.store.read(asset, shard, "passages"),
        "samples": (asset, [shard], "samples"),
        "segments": (asset, [shard], "segments"),
        "dependencies": (asset, [shard], "dependencies"),
        "dropped": (asset, [shard], "dropped"),
        "all_segments": (asset, pipeline.store.shards(asset), "segments"),
    }


def _parameters(settings: Settings) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.model import load_tokenizer
    from entropylong_assets.stages.samples.recipes import verdict_column

    return {
        "sample_tokens": settings.samples.tokens,
        "verdict": verdict_column(settings) or "none",
        "separator_ids": list(load_tokenizer(settings.scoring).separator_ids),
    }


sample_checks = sql_checks(
    "long_context_samples",
    _FOLDER,
    [
        SqlCheck("exact_length", "Every sample has exactly the wished number of tokens."),
        SqlCheck("segments_tile", "Segments tile the sample without gap or overlap."),
        SqlCheck("roles_reconcile", "Tokens by role add up."),
        SqlCheck("contexts_before_anchors", "Every context ends before its anchor."),
        SqlCheck("tokens_as_verified", "The tokens packed are the tokens verified."),
        SqlCheck("dependencies_reconcile", "Dependencies verified = packed + dropped."),
        SqlCheck("no_root_used_twice", "A document is a root in one sample alone."),
    ],
    _views,
    _parameters,
)

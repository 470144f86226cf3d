"""What the audits found, where they were made: figures and the rows of their charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.cross_model import GROUPS, summarise
from entropylong_assets.audits.null_calibration import epsilon_for, lift, rates
from entropylong_assets.audits.shard_audits import measures
from entropylong_assets.report.distributions import Rows
from entropylong_assets.settings.model import Settings
from entropylong_assets.storage.tables import TableStore


def audited_shards(store: TableStore, shards: Sequence[str], audit: str) -> list[str]:
    """Those of `shards` whose audit is of their dependencies as they are now."""
    found = []
    for shard in shards:
        made = store.manifest(audit, shard)
        now = store.require("verified_dependencies", shard).data_version
        if made and made.determinants.get("inputs", {}).get("verified_dependencies") == now:
            found.append(shard)
    return found


def gather_proof(
    store: TableStore, shards: Sequence[str], settings: Settings
) -> tuple[list[tuple[str, Any, str]], dict[str, Rows]]:
    """(name, value, kind) as in the report's headline figures, and the rows of its charts.

    Charts: `chance` (kind, rule, rate, low, high, passed, total), `recipes` (recipe, measure,
    value, low, high, roots). Empty where nothing was audited. Intervals are 95%, over roots.
    """
    figures: list[tuple[str, Any, str]] = []
    charts: dict[str, Rows] = {"chance": [], "recipes": []}
    rule = settings.verification.rule
    if null := audited_shards(store, shards, "null_calibration"):
        trials = store.read_all("null_calibration", null, "trials")
        pairs = store.read_all("verified_dependencies", null, "pairs").filter(
            pl.col("entropy_context").is_not_null()
            & pl.col("root_id").is_in(trials["root_id"].unique().to_list())
        )
        charts["chance"] = [row for row in rates(trials, pairs) if row["total"]]
        up = lift(trials, pairs, rule)
        wished = settings.audit.wished_false_acceptance
        held = epsilon_for(trials, settings.verification, wished, settings.seed)
        figures += [
            ("shards audited for chance", f"{len(null):,} of {len(shards):,}", "text"),
            ("roots audited for chance", trials["root_id"].n_unique(), "count"),
            ("lift of retrieval over chance", up["lift"], "number"),
            (f"ε that holds {wished:.0%} of random contexts", held["epsilon_for_rate"], "number"),
        ]
    if second := audited_shards(store, shards, "cross_model_audit"):
        rows = store.read_all("cross_model_audit", second, "pairs")
        if len(rows):
            found = summarise(rows)
            summaries = [store.require("cross_model_audit", shard).summary for shard in second]
            models = sorted({s["second_model"] for s in summaries if "second_model" in s})
            figures += [
                ("second model", ", ".join(models), "text"),
                *(
                    (f"pairs {words} that hold there", found[f"{name}_holds"], "share")
                    for name, words in GROUPS.items()
                ),
                ("rank correlation of gains", found.get("gain_rank_correlation"), "number"),
            ]
    if far := audited_shards(store, shards, "long_range_audit"):
        tables = (store.read_all("long_range_audit", far, n) for n in _LONG_RANGE)
        charts["recipes"] = [
            row for row in measures(*(t.to_dicts() for t in tables)) if row["value"] is not None
        ]
    return figures, charts


_LONG_RANGE = ("anchors", "windows", "dependencies")

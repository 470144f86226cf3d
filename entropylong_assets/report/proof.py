"""The figures of the audits, and the rows of their charts, if audits were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.audit_tables import number, recipe_order
from entropylong_assets.audits.cross_model import group_label, summarize
from entropylong_assets.audits.null_calibration import epsilon_for, lift, rates
from entropylong_assets.audits.recipe_measures import measures
from entropylong_assets.audits.tables import (
    CROSS_MODEL_AUDIT,
    LONG_RANGE_AUDIT,
    NULL_CALIBRATION,
)
from entropylong_assets.audits.trial.record import headline
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL
from entropylong_assets.report.distributions import Rows
from entropylong_assets.report.filtered_rows import read_rows
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import WHOLE, TableStore

Figure = tuple[str, Any, str]
"""(name, value, kind) as in the report's headline figures."""


def audited_shards(store: TableStore, shards: Sequence[str], audit: TableSet[Any]) -> list[str]:
    """Return those of `shards` whose audit was made from their present dependencies."""
    audited = []
    for shard in shards:
        manifest = store.manifest(audit, shard)
        now = store.require(VERIFIED_DEPENDENCIES, shard).data_version
        if (
            manifest
            and manifest.determinants.get("inputs", {}).get(VERIFIED_DEPENDENCIES.name) == now
        ):
            audited.append(shard)
    return audited


def audit_coverage(store: TableStore, shards: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each audit: its name, how many shards have it, of how many, and a note.

    Audits of older dependencies and skipped audits do not count. note: what is needed besides the
    command that makes the audits, or an empty text.
    """
    coverage = []
    for audit in (NULL_CALIBRATION, CROSS_MODEL_AUDIT, LONG_RANGE_AUDIT):
        audited = audited_shards(store, shards, audit)
        note = ""
        if audit is CROSS_MODEL_AUDIT:
            skipped = [store.summary(CROSS_MODEL_AUDIT, shard).skipped for shard in audited]
            audited = [shard for shard, why in zip(audited, skipped, strict=True) if not why]
            note = "" if audited else "needs a second model in audit.model"
        name = audit.name.replace("_", " ")
        coverage.append({"name": name, "made": len(audited), "of": len(shards), "note": note})
    return coverage


def gather_proof(
    store: TableStore, shards: Sequence[str], settings: Settings
) -> tuple[list[Figure], dict[str, Rows]]:
    """Return the figures of the audits and the rows of their charts.

    Both are empty if there are none. Charts: `by_chance` (kind, rule, rate, low, high, is_rough,
    passed, total), `recipes` (recipe, measure, value, low, high, roots). Intervals are 95%, over
    roots.
    """
    figures: list[Figure] = []
    charts: dict[str, Rows] = {"by_chance": [], "recipes": []}
    if null := audited_shards(store, shards, NULL_CALIBRATION):
        more, charts["by_chance"] = _null_calibration(store, null, settings)
        figures += [("shards with null calibration", f"{len(null):,} of {len(shards):,}", "text")]
        figures += more
    if second := audited_shards(store, shards, CROSS_MODEL_AUDIT):
        figures += _second_model(store, second)
    if long_range := audited_shards(store, shards, LONG_RANGE_AUDIT):
        names = ("anchors", "windows", "dependencies")
        tables = (store.read_all(LONG_RANGE_AUDIT, long_range, name) for name in names)
        charts["recipes"] = [
            row for row in measures(*(t.to_dicts() for t in tables)) if row["value"] is not None
        ]
    return figures, charts


def trial_table(store: TableStore) -> dict[str, Any] | None:
    """Return the table of the training trial: `note`, `head` and `rows` of text; None without one.

    A trial of dependencies that have been verified again since does not count.
    """
    made = store.manifest(TRAINING_TRIAL)
    inputs = made.determinants.get("inputs", {}).get(VERIFIED_DEPENDENCIES.name, {}) if made else {}
    for shard, version in inputs.items():
        now = store.manifest(VERIFIED_DEPENDENCIES, shard)
        if now is None or now.data_version != version:
            return None
    shown = headline(store.read(TRAINING_TRIAL, WHOLE, "differences")) if made else pl.DataFrame()
    if shown.is_empty():
        return None
    first, summary = shown.row(0, named=True), store.summary(TRAINING_TRIAL)
    names = shown["name"].unique(maintain_order=True).to_list()
    cells = {(row["arm"], row["name"]): row for row in shown.iter_rows(named=True)}
    arms = recipe_order(shown["arm"].unique())
    return {
        "note": (
            f"Training trial: {summary.model.rpartition('/')[2]}, trained further on "
            f"{first['tokens']:,} tokens of each arm, in samples of {first['sample_tokens']:,}. "
            f"Each row is an arm less {first['rival']}, with its 95% interval, paired over items "
            f"and seeds ({first['seeds']}). A positive difference of answers is better, a negative "
            "one of losses."
        ),
        "head": ["arm", *names],
        "rows": [[arm, *(number(cells.get((arm, n)), "{:+.4f}") for n in names)] for arm in arms],
    }


def _null_calibration(
    store: TableStore, shards: Sequence[str], settings: Settings
) -> tuple[list[Figure], Rows]:
    trials = store.read_all(NULL_CALIBRATION, shards, "trials")
    roots = trials["root_id"].unique()
    audited = pl.col("root_id").is_in(roots.to_list()) & pl.col("entropy_context").is_not_null()
    pairs = read_rows(store, VERIFIED_DEPENDENCIES, shards, "pairs", audited)
    rows = rates(trials, pairs, evaluated_rules(settings.verification))
    wished = settings.audit.wished_false_acceptance
    epsilon = epsilon_for(trials, settings.verification, wished, settings.seed)
    return [
        ("roots with null calibration", len(roots), "count"),
        (
            "acceptance of retrieved over random contexts (lift)",
            lift(trials, pairs, settings.verification.rule)["lift"],
            "number",
        ),
        (
            f"ε at which {wished:.0%} of random contexts pass",
            epsilon["epsilon_for_rate"],
            "number",
        ),
    ], [row for row in rows if row["total"]]


def _second_model(store: TableStore, shards: Sequence[str]) -> list[Figure]:
    rows = store.read_all(CROSS_MODEL_AUDIT, shards, "pairs")
    if rows.is_empty():
        return []
    summaries = [store.summary(CROSS_MODEL_AUDIT, shard) for shard in shards]
    models = sorted({summary.second_model for summary in summaries if summary.second_model})
    figures = summarize(rows)
    return [
        ("second model", ", ".join(models), "text"),
        *(
            (f"pairs {group_label(group)} that hold in the second model", share, "share")
            for group, share in figures["holds"].items()
        ),
        ("rank correlation of gains", figures["gain_rank_correlation"], "number"),
    ]

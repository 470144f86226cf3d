"""Reading all audit tables for the evidence page, and writing its figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.ablation import Scores
from entropylong_assets.audits.recipe_measures import measures
from entropylong_assets.audits.root_sample import Mean, clustered_mean
from entropylong_assets.audits.tables import CROSS_MODEL_AUDIT, LONG_RANGE_AUDIT, NULL_CALIBRATION
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.false_acceptance import Rate, interval_text
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore

OURS = "genuine"
"""The platform's own recipe, with which the others are compared."""

_ORDER = (
    OURS,
    "calibrated",
    "entropylong",
    "policylong",
    "no_verify",
    "quest",
    "nextlong",
    "random",
)


def recipe_order(recipes: Iterable[str]) -> list[str]:
    """Sort recipes for tables and charts.

    Ours is first; then come the built-in ones, from those that use most of the method to those that
    use least; then those of other packages by name.
    """
    known = {recipe: place for place, recipe in enumerate(_ORDER)}
    return sorted(recipes, key=lambda recipe: (known.get(recipe, len(known)), recipe))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(row: Mapping[str, Any] | None, form: str = "{:.3f}") -> str:
    """Format value and interval of a row with value (or rate), low, high and perhaps is_rough.

    A row without a value gives a dash.
    """
    if row is None:
        return "–"
    value = row.get("value", row.get("rate"))
    if value is None:
        return "–"
    shown = form.format(value)
    if row.get("low") is None or row.get("high") is None:
        return shown
    return f"{shown} ({interval_text(row['low'], row['high'], row.get('is_rough', False), form)})"


def rate_cell(rate: Rate, form: str = "{:.1%}") -> str:
    """A share and its interval; a dash without trials."""
    return rate.as_text(form) if rate.total else "–"


def as_row(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "low": mean.low, "high": mean.high}


class AuditTables:
    """All audit tables of some shards of a dataset, as one table each."""

    def __init__(self, store: TableStore, shards: Sequence[str], settings: Settings) -> None:
        """settings: those that the tables were made with."""

        def read(tables: TableSet[Any], table: str) -> pl.DataFrame:
            return store.read_all(tables, shards, table)

        self.settings = settings
        self.rules = tuple(evaluated_rules(settings.verification))
        self.trials = read(NULL_CALIBRATION, "trials")
        self.anchors = read(LONG_RANGE_AUDIT, "anchors")
        self.windows = read(LONG_RANGE_AUDIT, "windows")
        self.dependencies = read(LONG_RANGE_AUDIT, "dependencies")
        # The audit is skipped if there is no second model.
        audited = [shard for shard in shards if store.manifest(CROSS_MODEL_AUDIT, shard)]
        second = [store.read(CROSS_MODEL_AUDIT, shard, "pairs") for shard in audited]
        empty = pl.DataFrame(schema=pl.Schema(CROSS_MODEL_AUDIT.schemas["pairs"]))
        self.second = pl.concat([empty, *second])
        sampled = self.trials["root_id"].unique().to_list()
        pairs = read(VERIFIED_DEPENDENCIES, "pairs")
        scored = pairs.filter(pl.col("entropy_context").is_not_null())
        self.pairs = scored.filter(pl.col("root_id").is_in(sampled))
        self.contexts = read(VERIFIED_DEPENDENCIES, "contexts").unique("chunk_id")
        self.roots = read(ENTROPY_SCORES, "roots").unique("root_id")
        self.controls = read(VERIFIED_DEPENDENCIES, "controls")
        self.scores = Scores(self.roots, pairs, self.contexts, self.controls)

    @property
    def recipes(self) -> list[str]:
        """The audited recipes, in their order for tables."""
        return recipe_order(self.windows["recipe"].unique().to_list())

    def recipe_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Measures of the recipes, by recipe and measure."""
        rows = measures(
            self.anchors.to_dicts(), self.windows.to_dicts(), self.dependencies.to_dicts()
        )
        return {(row["recipe"], row["measure"]): row for row in rows}

    def difference(self, recipe: str, rival: str, score: str) -> Mean:
        """Mean over anchors of the recipe's drop of a score minus the rival's.

        Both drops are relative to the same random passages, cut to the length of the contexts.
        """
        keys = ["root_id", "anchor"]
        drops = self.anchors.select(
            "recipe", *keys, (pl.col(f"{score}_random") - pl.col(f"{score}_in_place")).alias("drop")
        )
        both = drops.filter(recipe=recipe).join(drops.filter(recipe=rival), on=keys, suffix="_b")
        both = both.sort(keys)
        values = (both["drop"] - both["drop_b"]).cast(pl.Float64).to_list()
        return clustered_mean(values, both["root_id"].to_list())

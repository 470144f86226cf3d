"""What the pages of the evidence are made from: all audit tables, and Markdown of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.ablation import Scores
from entropylong_assets.audits.root_sample import Mean, clustered_mean
from entropylong_assets.audits.shard_audits import measures
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.verification.false_acceptance import Rate
from entropylong_assets.storage.tables import TableStore

RECIPE_ORDER = (
    "calibrated",
    "entropylong",
    "policylong",
    "no_verify",
    "quest",
    "nextlong",
    "random",
)
"""Ours first, then from the most to the least of the method."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(row: Mapping[str, Any] | None, form: str = "{:.3f}") -> str:
    """Value and interval of a row with value (or rate), low and high."""
    if row is None:
        return "–"
    value = row.get("value", row.get("rate"))
    if value is None:
        return "–"
    shown = form.format(value)
    if row.get("low") is None or row.get("high") is None:
        return shown
    return f"{shown} ({form.format(row['low'])} to {form.format(row['high'])})"


def rate_cell(rate: Rate, form: str = "{:.1%}") -> str:
    """A share and its interval; a dash without trials."""
    value = rate.value if rate.total else None
    return number({"value": value, "low": rate.low, "high": rate.high}, form)


def as_row(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "low": mean.low, "high": mean.high}


class Audited:
    """All audit tables of some shards, one below the other."""

    def __init__(self, store: TableStore, shards: Sequence[str], settings: Settings) -> None:
        def read(asset: str, name: str) -> pl.DataFrame:
            return store.read_all(asset, shards, name)

        self.settings = settings
        self.trials = read("null_calibration", "trials")
        self.anchors = read("long_range_audit", "anchors")
        self.windows = read("long_range_audit", "windows")
        self.dependencies = read("long_range_audit", "dependencies")
        self.second = read("cross_model_audit", "pairs")
        sampled = self.trials["root_id"].unique().to_list()
        pairs = read("verified_dependencies", "pairs")
        scored = pairs.filter(pl.col("entropy_context").is_not_null())
        self.pairs = scored.filter(pl.col("root_id").is_in(sampled))
        self.contexts = read("verified_dependencies", "contexts").unique("chunk_id")
        self.roots = read("entropy_scores", "roots").unique("root_id")
        self.controls = read("verified_dependencies", "controls")
        self.scores = Scores(self.roots, pairs, self.contexts, self.controls)

    def recipe_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = measures(
            self.anchors.to_dicts(), self.windows.to_dicts(), self.dependencies.to_dicts()
        )
        return {(row["recipe"], row["measure"]): row for row in rows}

    def difference(self, ours: str, theirs: str, score: str) -> Mean:
        """Mean of ours minus theirs in the fall of a score, anchor by anchor. Both are held against
        the same random passages, as many of them as their contexts are long."""
        keys = ["root_id", "anchor"]
        falls = self.anchors.select(
            "recipe", *keys, (pl.col(f"{score}_random") - pl.col(f"{score}_in_place")).alias("fall")
        )
        both = falls.filter(recipe=ours).join(falls.filter(recipe=theirs), on=keys, suffix="_b")
        both = both.sort(keys)
        values = (both["fall"] - both["fall_b"]).cast(pl.Float64).to_list()
        return clustered_mean(values, both["root_id"].to_list())

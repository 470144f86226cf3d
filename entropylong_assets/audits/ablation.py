"""Ablations over stored scores: what α, ε, K, order and verification change, without a forward
pass.

Entropies of all tokens are stored, so anchors can be counted at any α. Pairs were scored for the
anchors of the α, w and K in force: dependencies at a lower α, another w or a larger K are not in
the tables. Such rows say so and hold no figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.settings.model import Settings, VerificationSettings
from entropylong_assets.stages.samples.packing import Framing, lay_out, pack
from entropylong_assets.stages.samples.recipes import choose_groups
from entropylong_assets.stages.verification.false_acceptance import (
    acceptance_rate,
    false_acceptance,
)
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.storage.tables import TableStore

ALPHAS = (1.5, 2.0, 2.5)
EPSILONS = (0.2, 0.4, 0.6, 0.8)
RULES = ("plain", "calibrated")

PAPER = {
    ("alpha", "1.5"): 913.0,
    ("alpha", "2"): 292.0,
    ("alpha", "2.5"): 83.0,
    ("epsilon", "0.2"): 62.0,
    ("epsilon", "0.4"): 46.0,
    ("epsilon", "0.6"): 29.0,
    ("epsilon", "0.8"): 13.0,
}
"""The paper's figures: anchors a root by α, dependencies a root by ε (Llama-3-8B, K unknown)."""

SCHEMA = pl.Schema(
    {
        "knob": pl.String,
        "value": pl.String,
        "rule": pl.String,
        "roots": pl.Int64,
        "anchors_per_root": pl.Float64,
        "dependencies_per_root": pl.Float64,
        "acceptance": pl.Float64,
        "acceptance_low": pl.Float64,
        "acceptance_high": pl.Float64,
        "false_acceptance": pl.Float64,
        "false_acceptance_low": pl.Float64,
        "false_acceptance_high": pl.Float64,
        "mean_gain": pl.Float64,
        "mean_surprisal_drop": pl.Float64,
        "median_distance": pl.Float64,
        "paper": pl.Float64,
        "note": pl.String,
    }
)


@dataclass(frozen=True)
class Scores:
    """Stored scores of some shards: the tables' rows, one below the other."""

    roots: pl.DataFrame
    pairs: pl.DataFrame
    contexts: pl.DataFrame
    controls: pl.DataFrame

    @property
    def n_roots(self) -> int:
        return len(self.roots)


def read_scores(store: TableStore, shards: Sequence[str]) -> Scores:
    """All that an ablation reads. Raises TableError where a table is missing."""

    def read(asset: str, table: str, columns: list[str] | None = None) -> pl.DataFrame:
        return store.read_all(asset, shards, table, columns)

    columns = ["root_id", "token_ids", "entropies", "mean", "std"]
    contexts = read("verified_dependencies", "contexts")
    return Scores(
        # A document in two shards is a root of its owner alone, with the same scores.
        roots=read("entropy_scores", "roots", columns).unique("root_id", maintain_order=True),
        pairs=read("verified_dependencies", "pairs"),
        contexts=contexts.unique("chunk_id", keep="first", maintain_order=True),
        controls=read("verified_dependencies", "controls"),
    )


def anchors_per_root(roots: pl.DataFrame, alpha: float, first_position: int) -> float | None:
    """Positions with H > μ + α·σ from `first_position` on, a root. roots: entropies, mean, std."""
    if not len(roots):
        return None
    counted = roots.select(
        pl.col("entropies")
        .list.slice(first_position)
        .list.eval(pl.element().cast(pl.Float64))
        .alias("entropies"),
        (pl.col("mean") + alpha * pl.col("std")).alias("threshold"),
    ).with_row_index("root")
    above = counted.explode("entropies").filter(pl.col("entropies") > pl.col("threshold"))
    return len(above) / len(roots)


def _cut(scores: Scores, alpha: float, top_k: int | None) -> Scores:
    """The pairs and controls of anchors above a higher τ, and of the first K candidates."""
    tau = scores.roots.select("root_id", (pl.col("mean") + alpha * pl.col("std")).alias("tau"))
    pairs = scores.pairs.join(tau, on="root_id", maintain_order="left").filter(
        pl.col("entropy").cast(pl.Float64) > pl.col("tau")
    )
    if top_k is not None:
        pairs = pairs.filter(pl.col("rank") <= top_k)
    anchors = pairs.select("root_id", "anchor").unique()
    controls = scores.controls.join(anchors, on=["root_id", "anchor"], how="semi")
    return Scores(scores.roots, pairs.drop("tau"), scores.contexts, controls)


def judged(pairs: pl.DataFrame, settings: VerificationSettings) -> pl.DataFrame:
    """Stored pairs judged anew by these settings."""
    refused = pl.when(pl.col("entropy_context").is_null()).then(pl.col("verdict"))
    return judge(pairs.with_columns(refused.alias("refusal")), settings)


def _verdicts(scores: Scores, settings: VerificationSettings) -> dict[str, Any]:
    """Figures of the pairs under one rule and ε."""
    verdicts = judged(scores.pairs, settings)
    scored = verdicts.filter(pl.col("entropy_context").is_not_null())
    accepted = scored.filter("accepted")
    rate = acceptance_rate(scored)
    figures: dict[str, Any] = {
        "dependencies_per_root": len(accepted) / scores.n_roots if scores.n_roots else None,
        "acceptance": rate.value if rate.total else None,
        "acceptance_low": rate.low,
        "acceptance_high": rate.high,
        "mean_gain": accepted["gain"].mean(),
        "mean_surprisal_drop": (accepted["surprisal"] - accepted["surprisal_context"]).mean(),
    }
    if len(scores.controls):
        anchors = scores.pairs.select("root_id", "anchor", "entropy", "surprisal").unique()
        chance = false_acceptance(anchors, scores.controls, settings)[settings.rule]
        figures |= {
            "false_acceptance": chance.value if chance.total else None,
            "false_acceptance_low": chance.low,
            "false_acceptance_high": chance.high,
        }
    return figures


def _rules(scores: Scores, settings: Settings) -> Iterator[tuple[str, VerificationSettings, str]]:
    """Each rule with its settings; the third is why it can't be had, or nothing."""
    can_calibrate = scores.pairs["entropy_control"].null_count() < max(1, len(scores.pairs))
    for rule in RULES:
        # Controls only as the model wants them: nothing is drawn here.
        changed = settings.verification.model_copy(update={"rule": rule})
        missing = "" if rule == "plain" or can_calibrate else "scored without controls"
        yield rule, changed, missing


def _distance(scores: Scores, settings: Settings) -> float | None:
    """Median tokens from context to anchor in samples packed anew, in memory."""
    roots = scores.roots.select("root_id", "token_ids")
    groups, _ = choose_groups(roots, scores.pairs, scores.contexts, settings)
    framing = Framing(bos_id=None, separator_ids=(), pad_id=0)
    distances: list[int] = []
    for members in pack(groups, framing, settings.samples, settings.seed)[0]:
        position, ends = 0, {}
        waiting = []
        for segment in lay_out(members, framing, settings.samples, settings.seed):
            end = position + len(segment.token_ids)
            if segment.role == "verified" and segment.context is not None:
                waiting.append((segment.context, end))
            elif segment.role == "root" and segment.group is not None:
                ends[segment.group.root_id] = position
            position = end
        distances += [
            ends[context.root_id] + dependency.anchor - end
            for context, end in waiting
            for dependency in context.dependencies
        ]
    return float(pl.Series(distances).median()) if distances else None  # type: ignore[arg-type]


def ablate(scores: Scores, settings: Settings) -> pl.DataFrame:
    """One row for each knob, value and rule, with the columns of `SCHEMA`.

    settings: those that the scores were made with.
    """
    alpha, top_k = settings.entropy.alpha, settings.retrieval.top_k
    base = {"roots": scores.n_roots}
    rows: list[dict[str, Any]] = []

    def row(knob: str, value: object, rule: str, **figures: Any) -> None:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        paper = PAPER.get((knob, shown)) if rule == "plain" else None
        rows.append(base | {"knob": knob, "value": shown, "rule": rule, "paper": paper} | figures)

    rules = list(_rules(scores, settings))
    for value in sorted({*ALPHAS, alpha}):
        found = anchors_per_root(scores.roots, value, settings.entropy.min_anchor_position)
        for rule, changed, missing in rules:
            if value < alpha:
                note = f"anchors alone: pairs were scored for α = {alpha:g}"
                row("alpha", value, rule, anchors_per_root=found, note=note)
            elif missing:
                row("alpha", value, rule, anchors_per_root=found, note=missing)
            else:
                figures = _verdicts(_cut(scores, value, None), changed)
                row("alpha", value, rule, anchors_per_root=found, **figures)
    for value in sorted({*EPSILONS, settings.verification.epsilon}):
        for rule, changed, missing in rules:
            at = changed.model_copy(update={"epsilon": value})
            row("epsilon", value, rule, **({"note": missing} if missing else _verdicts(scores, at)))
    for count in [k for k in (1, 2, 4, 8, 16, 32) if k < top_k] + [top_k, 2 * top_k]:
        for rule, changed, missing in rules:
            if count > top_k:
                row("K", count, rule, note=f"not retrieved: K was {top_k}; raise retrieval.top_k")
            elif missing:
                row("K", count, rule, note=missing)
            else:
                row("K", count, rule, **_verdicts(_cut(scores, -float("inf"), count), changed))
    for rule, changed, missing in rules:
        off = changed.model_copy(update={"epsilon": -1e9, "require_surprisal_drop": False})
        row(
            "verification",
            "on",
            rule,
            **({"note": missing} if missing else _verdicts(scores, changed)),
        )
        row(
            "verification",
            "off",
            rule,
            **({"note": missing} if missing else _verdicts(scores, off)),
        )
    for order in ("shuffle", "sequence"):
        samples = settings.samples.model_copy(update={"order": order})
        changed_all = settings.model_copy(update={"samples": samples})
        row(
            "order",
            order,
            settings.verification.rule,
            median_distance=_distance(scores, changed_all),
            note="verdicts don't depend on it",
        )
    width = settings.retrieval.half_window
    row("w", width, settings.verification.rule, **_verdicts(scores, settings.verification))
    row("w", "others", "", note="another w asks other queries: retrieve and verify again")
    return pl.DataFrame(rows, schema=SCHEMA)

"""The evidence that is about single pairs: chance, a second model, planted truth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.audit_tables import Audited, as_row, number, rate_cell, table
from entropylong_assets.audits.cross_model import GROUPS, group_of, summarise
from entropylong_assets.audits.null_calibration import KINDS, epsilon_for, lift, rates
from entropylong_assets.audits.root_sample import clustered_mean
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate


def null_table(audited: Audited) -> str:
    found = rates(audited.trials, audited.pairs)
    lines = []
    for kind in ("retrieved", *KINDS):
        both = {row["rule"]: row for row in found if row["kind"] == kind}
        total = str(both["plain"]["total"])
        lines.append(
            [kind, total, *(number(both[rule], "{:.2%}") for rule in ("plain", "calibrated"))]
        )
    return table(("contexts", "trials", "pass the plain rule", "pass the calibrated rule"), lines)


def null_words(audited: Audited) -> list[str]:
    lines = []
    wished = audited.settings.audit.wished_false_acceptance
    for rule in ("plain", "calibrated"):
        chosen = audited.settings.verification.model_copy(update={"rule": rule})
        held = epsilon_for(audited.trials, chosen, wished, audited.settings.seed)
        words = {
            name: "any" if held[name] is None else f"{held[name]:.2f}"
            for name in ("epsilon_for_rate", "epsilon_low", "epsilon_high")
        }
        up = lift(audited.trials, audited.pairs, rule)
        times = (
            "not bounded above: no random context passed"
            if up["lift"] is None
            else (f"{up['lift']:.1f}")
        )
        low = "–" if up["lift_low"] is None else f"{up['lift_low']:.1f}"
        high = "no bound" if up["lift_high"] is None else f"{up['lift_high']:.1f}"
        lines.append(
            f"- {rule}: ε that holds {wished:.0%}: {words['epsilon_for_rate']} "
            f"({words['epsilon_low']} to {words['epsilon_high']}); lift of retrieval over chance: "
            f"{times} (95% interval {low} to {high})."
        )
    if (epsilon := equal_epsilon(audited.pairs)) is not None:
        trials = audited.trials.with_columns(passes=pl.col("gain") > epsilon)
        random, topical = (
            rate_cell(acceptance_rate(trials.filter(kind=kind), "passes"), "{:.2%}")
            for kind in ("random", "topical")
        )
        lines.append(
            f"- At ε = {epsilon:.2f} the plain rule accepts as many retrieved contexts as the "
            f"calibrated one at {audited.settings.verification.epsilon:g}. It then lets pass "
            f"{random} of random and {topical} of topical contexts."
        )
    return lines


def equal_epsilon(pairs: pl.DataFrame) -> float | None:
    """The ε at which the plain rule accepts as many pairs as the calibrated one does at its own;
    None where that rule accepts none, or all. pairs: gain, accepted_calibrated."""
    gains, accepted = pairs["gain"].drop_nulls(), int(pairs["accepted_calibrated"].sum())
    if not 0 < accepted < len(gains):
        return None
    return float(gains.sort(descending=True)[accepted])


def second_words(audited: Audited, model: str) -> str:
    if not len(audited.second):
        return (
            "No second model was named (`audit.model`), so nothing is known here of what another "
            "model would say.\n"
        )
    found = summarise(audited.second)
    lines = [f"Second model: `{model}`.\n"]
    rows = []
    for name, words in GROUPS.items():
        cells = []
        for measure, form in (("holds", "{:.1%}"), ("surprisal_drop", "{:.3f}")):
            key = f"{name}_{measure}"
            row = {"value": found[key], "low": found[f"{key}_low"], "high": found[f"{key}_high"]}
            cells.append(number(row, form))
        rows.append([words, str(found[f"{name}_pairs"]), *cells])
    lines.append(table(("pairs", "number", "hold there", "surprisal drop there (nats)"), rows))
    lines.append("These groups differ in the size of their gains, too. At equal gains:\n")
    lines.append(equal_gains_table(audited.second, audited.settings.verification.epsilon))
    if "gain_rank_correlation" in found:
        lines.append(
            f"Rank correlation of both models' gains: {found['gain_rank_correlation']:.2f}."
        )
    return "\n".join(lines) + "\n"


def equal_gains_table(second: pl.DataFrame, epsilon: float) -> str:
    """What the second model says of pairs that each rule accepts, by the first model's gain."""
    edges = [epsilon, *(edge for edge in (0.6, 0.8) if edge > epsilon), float("inf")]
    lines = []
    for low, high in itertools.pairwise(edges):
        cells = []
        for group in ("both_rules", "plain_rule_alone"):
            inside = (pl.col("gain") > low) & (pl.col("gain") <= high)
            part = second.filter(inside & (group_of() == group))
            fall = (part["second_surprisal"] - part["second_surprisal_context"]).to_list()
            drop = clustered_mean(fall, part["root_id"].to_list())
            rate = rate_cell(acceptance_rate(part, "holds"), "{:.0%}")
            cells += [str(len(part)), rate, number(as_row(drop), "{:.2f}")]
        lines.append([f"over {low:g}", *cells])
    head = ["gain", *(f"{rule}: {of}" for rule in ("both", "plain alone") for of in _OF_SECOND)]
    return table(head, lines)


_OF_SECOND = ("number", "hold there", "surprisal drop there")


def planted_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["measure"],
            f"{row['alpha']:g}",
            row["rule"],
            f"{row['passed']} of {row['total']}",
            number(row, "{:.0%}"),
        ]
        for row in rows
    ]
    return table(("planted truth", "α", "rule", "count", "share"), lines)


def shortfall_words(nats: float | None, alpha: float) -> str:
    if nats is None:
        return "No needing document was a root."
    side = "below" if nats > 0 else "above"
    return (
        f"The highest entropy in a fact's value lies {abs(nats):.2f} nats {side} its root's τ at "
        f"α = {alpha:g}, in the median."
    )

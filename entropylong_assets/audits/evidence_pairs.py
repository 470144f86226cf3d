"""The evidence about single pairs: contexts that should not help, a second model, planted facts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.ablation import PAPER_RULE, under_rule
from entropylong_assets.audits.audit_tables import AuditTables, as_row, number, rate_cell, table
from entropylong_assets.audits.cross_model import NO_RULE, group_label, group_rows, summarize
from entropylong_assets.audits.null_calibration import KINDS, RETRIEVED, epsilon_for, lift, rates
from entropylong_assets.audits.root_sample import clustered_mean
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import accepted_by

MAX_LIFT = 1000
"""A lift above this depends on one or two random contexts that passed, so it is not shown."""


def null_table(audited: AuditTables) -> str:
    """Acceptance by kind of context, one column per rule."""
    rows = {
        (row["kind"], row["rule"]): row
        for row in rates(audited.trials, audited.pairs, audited.rules)
    }
    lines = []
    for kind in (RETRIEVED, *KINDS):
        by_rule = [rows[kind, rule] for rule in audited.rules]
        cells = (number(row, "{:.2%}") for row in by_rule)
        lines.append([kind, str(by_rule[0]["total"]), *cells])
    head = [f"pass rule {rule}" for rule in audited.rules]
    return table(("contexts", "trials", *head), lines)


def null_words(audited: AuditTables) -> list[str]:
    """Sentences on ε at the wished rate and the lift, per rule, and on rules at equal yield."""
    lines = []
    wished = audited.settings.audit.wished_false_acceptance
    for rule in audited.rules:
        settings = under_rule(audited.settings.verification, rule)
        held = epsilon_for(audited.trials, settings, wished, audited.settings.seed)
        least, low, high = (
            "any" if epsilon is None else f"{epsilon:.2f}" for epsilon in held.values()
        )
        interval = "" if least == low == high == "any" else f" ({low} to {high})"
        up = lift(audited.trials, audited.pairs, rule)
        unbounded = "not bounded above: no random context passed"
        lines.append(
            f"- {rule}: least ε at which at most {wished:.0%} of random contexts pass: "
            f"{least}{interval}; lift of retrieved over random contexts: "
            f"{_figure(up['lift'], unbounded)} (95% interval {_figure(up['lift_low'], '–')} to "
            f"{_figure(up['lift_high'], 'no bound')})."
        )
    for rule in audited.rules:
        if rule != PAPER_RULE and (epsilon := equal_epsilon(audited.pairs, rule)) is not None:
            trials = audited.trials.with_columns(passes=pl.col("gain") > epsilon)
            random, topical = (
                rate_cell(acceptance_rate(trials.filter(kind=kind), "passes"), "{:.2%}")
                for kind in ("random", "topical")
            )
            lines.append(
                f"- At ε = {epsilon:.2f} rule {PAPER_RULE} accepts as many retrieved contexts as "
                f"rule {rule} at {audited.settings.verification.epsilon:g}. It then accepts "
                f"{random} of random and {topical} of topical contexts."
            )
    return lines


def _figure(value: float | None, otherwise: str) -> str:
    if value is None:
        return otherwise
    return f"{value:.1f}" if value < MAX_LIFT else f"over {MAX_LIFT:,}"


def equal_epsilon(pairs: pl.DataFrame, rule: str) -> float | None:
    """The ε at which the paper's rule accepts as many pairs as another rule does at its own.

    None if that rule accepts none, or all. pairs: gain, accepted_by.
    """
    gains = pairs["gain"].drop_nulls()
    accepted = len(pairs.filter(accepted_by(rule)))
    if not 0 < accepted < len(gains):
        return None
    return float(gains.sort(descending=True)[accepted])


def second_words(audited: AuditTables, model: str) -> str:
    """Sentences and table on the second model's scores of accepted and rejected pairs."""
    if not len(audited.second):
        return (
            "No second model was named (`audit.model`), so this page does not show what another "
            "model would say.\n"
        )
    figures = summarize(audited.second)
    rows = []
    for group in figures["pairs_by_group"]:
        cells = []
        for measure, form in (("holds", "{:.1%}"), ("surprisal_drop", "{:.3f}")):
            ends = {"value": measure, "low": f"{measure}_low", "high": f"{measure}_high"}
            row = {name: figures[key].get(group) for name, key in ends.items()}
            cells.append(number(row, form))
        rows.append([group_label(group), str(figures["pairs_by_group"][group]), *cells])
    lines = [
        f"Second model: `{model}`.\n",
        table(("pairs", "number", *_OF_SECOND), rows),
        "These groups also differ in the size of their gains. At equal gains:\n",
        equal_gains_table(audited.second, audited.settings.verification.epsilon),
    ]
    if (correlation := figures["gain_rank_correlation"]) is not None:
        lines.append(f"Rank correlation of both models' gains: {correlation:.2f}.")
    return "\n".join(lines) + "\n"


_OF_SECOND = ("hold there", "surprisal drop there (nats)")


def equal_gains_table(second: pl.DataFrame, epsilon: float) -> str:
    """Table of the second model's scores of pairs, by the first model's gain and by group."""
    groups = {name: rows for name, rows in group_rows(second).items() if name != NO_RULE}
    edges = [epsilon, *(edge for edge in (0.6, 0.8) if edge > epsilon), float("inf")]
    lines = []
    for low, high in itertools.pairwise(edges):
        cells = []
        for rows in groups.values():
            part = rows.filter((pl.col("gain") > low) & (pl.col("gain") <= high))
            drop = (part["second_surprisal"] - part["second_surprisal_context"]).to_list()
            mean = clustered_mean(drop, part["root_id"].to_list())
            rate = rate_cell(acceptance_rate(part, "holds"), "{:.0%}")
            cells += [str(len(part)), rate, number(as_row(mean), "{:.2f}")]
        lines.append([f"over {low:g}", *cells])
    measures = ("number", *_OF_SECOND)
    head = [f"{name}: {measure}" for name in groups for measure in measures]
    return table(("gain", *head), lines)


def planted_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `planted.measure` as a table."""
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
    return table(("planted facts", "α", "rule", "count", "share"), lines)


def forms_table(forms: pl.DataFrame) -> str:
    """The counts of `planted.count_by_form` as a table."""
    return table(forms.columns, [[str(cell) for cell in row] for row in forms.iter_rows()])


def shortfall_words(nats: float | None, alpha: float) -> str:
    """A sentence on how far the values of the planted facts are from being anchors."""
    if nats is None:
        return "No document that needs a fact was a root."
    side = "below" if nats > 0 else "above"
    return (
        f"The highest entropy in a fact's value lies {abs(nats):.2f} nats {side} its root's τ at "
        f"α = {alpha:g}, in the median."
    )

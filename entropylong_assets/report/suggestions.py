"""Suggested α, ε, K and number of roots, each with what it is based on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.report.corpus_sample import Sample
from entropylong_assets.report.estimate import Size, SizeError, make_estimate
from entropylong_assets.stages.verification.registry import RULES

ENOUGH = 0.9
"""Share of the dependencies that a smaller K must keep."""
STILL_RISING = 0.2
"""A larger K is suggested if the last doubling added at least this share."""
TOO_WIDE = 8
"""An interval whose upper end is more than this many times its lower end says too little."""
WITHHELD = "–"
"""In place of a value that would rest on too little."""


@dataclass(frozen=True)
class Suggestion:
    """A setting, the suggested value or `WITHHELD`, and the reason."""

    setting: str
    value: str
    basis: str


def suggest(sample: Sample, table: pl.DataFrame | None, samples: int | None) -> list[Suggestion]:
    """Return all suggestions.

    table: result of `audits.ablation.ablate`; None if nothing was verified. samples: wished number
    of samples; None: no number of roots is suggested.
    """
    settings = sample.settings
    rule = settings.verification.rule
    suggestions = []
    if table is not None:
        rows = table.filter(pl.col("rule") == rule)
        alpha, epsilon, top_k = (
            settings.entropy.alpha,
            settings.verification.epsilon,
            settings.retrieval.top_k,
        )
        limit, n = settings.verification.max_false_acceptance, sample.verified.verified_roots
        suggestions.append(withhold(suggest_alpha(rows, alpha), _rows(rows, "alpha"), alpha, n))
        if "epsilon" in RULES[rule].settings:
            at_epsilon = suggest_epsilon(rows, rule, epsilon, limit)
            suggestions.append(withhold(at_epsilon, _rows(rows, "epsilon"), epsilon, n))
        suggestions.append(withhold(suggest_top_k(rows, top_k), _rows(rows, "K"), top_k, n))
    return [*suggestions, *([suggest_roots(sample, samples)] if samples else [])]


def withhold(
    suggestion: Suggestion, rows: Sequence[Mapping[str, Any]], present: float, roots: int
) -> Suggestion:
    """Return the suggestion, without its value if too little was verified to act on it.

    That is so if the interval of the share of accepted pairs, at the present value, is too wide.
    Another α and a lower ε are kept: they are suggested only if their interval is clear. rows: of
    an ablation over the values of the setting.
    """
    now = next((row for row in rows if float(row["value"]) == present), None)
    is_clear = suggestion.setting == "entropy.alpha" or (
        suggestion.setting == "verification.epsilon" and float(suggestion.value) < present
    )
    if now is None or (is_clear and float(suggestion.value) != present):
        return suggestion
    low, high = now["acceptance_low"], now["acceptance_high"]
    if high <= TOO_WIDE * low:
        return suggestion
    return Suggestion(
        suggestion.setting,
        WITHHELD,
        f"too little to suggest anything: the {roots:,} roots verified say only that "
        f"{low:.1%} to {high:.1%} of pairs are accepted (95%). Verify more: --roots and --minutes",
    )


def _rows(table: pl.DataFrame, knob: str) -> list[dict[str, Any]]:
    rows = table.filter((pl.col("knob") == knob) & pl.col("acceptance").is_not_null())
    return sorted(rows.iter_rows(named=True), key=lambda row: float(row["value"]))


def _share(row: dict[str, Any]) -> str:
    return (
        f"{row['acceptance']:.1%} of pairs (95%: {row['acceptance_low']:.1%} to "
        f"{row['acceptance_high']:.1%})"
    )


def suggest_alpha(table: pl.DataFrame, present: float) -> Suggestion:
    """Suggest a higher α if its pairs are clearly accepted more often, or else the present one.

    table: rows of an ablation under the rule in force. Pairs of a lower α were not verified.
    """
    rows = _rows(table, "alpha")
    now = next((row for row in rows if float(row["value"]) == present), None)
    if now is None:
        return Suggestion("entropy.alpha", f"{present:g}", "no pair was verified")
    better = [row for row in rows if row["acceptance_low"] > now["acceptance"]]
    best = max(better, key=lambda row: row["acceptance"], default=now)
    basis = "; ".join(
        f"α {row['value']}: {row['anchors_per_root']:.0f} anchors per root, {_share(row)}"
        for row in rows
    )
    why = "clearly more pairs accepted" if better else "no higher α is clearly better"
    return Suggestion("entropy.alpha", best["value"], f"{why}. {basis}")


def suggest_epsilon(
    table: pl.DataFrame, rule: str, present: float, max_false_acceptance: float
) -> Suggestion:
    """Suggest an ε at which the rule accepts few control contexts.

    A lower ε than the present one is suggested only if the upper end of its interval is within
    `max_false_acceptance`; a higher one if the present one accepts more than that. table: rows of
    an ablation under the rule in force.
    """
    rows = _rows(table, "epsilon")
    setting = "verification.epsilon"
    if len({row["dependencies_per_root"] for row in rows}) <= 1:
        accepts = bool(rows) and rows[0]["dependencies_per_root"]
        what = f"rule {rule} accepts the same pairs" if accepts else "no pair was accepted"
        return Suggestion(setting, f"{present:g}", f"{what} at any ε looked at")
    basis = "; ".join(f"ε {row['value']}: {_share(row)}{_of_controls(row)}" for row in rows)
    judged = [row for row in rows if row["false_acceptance"] is not None]
    if not judged:
        return Suggestion(setting, f"{present:g}", f"without controls none can be judged. {basis}")
    limit = f"{max_false_acceptance:.1%} of control contexts (verification.max_false_acceptance)"
    sure = [row for row in judged if row["false_acceptance_high"] <= max_false_acceptance]
    if sure and float(sure[0]["value"]) < present:
        return Suggestion(
            setting, sure[0]["value"], f"the lowest that surely accepts at most {limit}. {basis}"
        )
    fit = [
        row
        for row in judged
        if row["false_acceptance"] <= max_false_acceptance and float(row["value"]) >= present
    ]
    if not fit:
        why = f"the highest looked at, though it accepts more than {limit}"
        return Suggestion(setting, judged[-1]["value"], f"{why}. {basis}")
    if float(fit[0]["value"]) > present:
        return Suggestion(
            setting, fit[0]["value"], f"the lowest that accepts at most {limit}. {basis}"
        )
    why = f"it accepts at most {limit}, and too few were scored to be sure of a lower one"
    return Suggestion(setting, f"{present:g}", f"{why}. {basis}")


def _of_controls(row: dict[str, Any]) -> str:
    if row["false_acceptance"] is None:
        return ""
    return (
        f", {row['false_acceptance']:.1%} of control contexts (at most "
        f"{row['false_acceptance_high']:.1%})"
    )


def suggest_top_k(table: pl.DataFrame, present: int) -> Suggestion:
    """Suggest the smallest K that keeps nearly all dependencies, or twice K if they still rise.

    table: rows of an ablation under the rule in force.
    """
    rows = _rows(table, "K")
    most = max((row["dependencies_per_root"] or 0 for row in rows), default=0)
    if not most:
        return Suggestion("retrieval.top_k", str(present), "no pair was accepted")
    kept = [(int(row["value"]), row["dependencies_per_root"] / most) for row in rows]
    basis = "; ".join(f"K {k}: {share:.0%}" for k, share in kept)
    basis = f"share of the dependencies by rank: {basis}"
    half = max((share for k, share in kept if 2 * k <= present), default=0.0)
    smallest = next(k for k, share in kept if share >= ENOUGH)
    if smallest == present and 1 - half >= STILL_RISING and len(kept) > 1:
        return Suggestion("retrieval.top_k", str(2 * present), f"still rising at K. {basis}")
    return Suggestion(
        "retrieval.top_k", str(smallest), f"the smallest that keeps {ENOUGH:.0%}. {basis}"
    )


def suggest_roots(sample: Sample, samples: int) -> Suggestion:
    """Suggest `roots.number` for a wished number of samples, under the present α, ε and K."""
    rows = sum(sample.shard_rows)
    try:
        estimate = make_estimate(sample, Size(samples, "samples"))
    except SizeError:
        return Suggestion(
            "roots.number", WITHHELD, "the sample yields no root, so that none can be suggested"
        )
    roots, expected = estimate.figure("roots"), estimate.figure("samples")
    suited = len(sample.lengths.eligible) / max(sample.chosen_rows, 1)
    number = round(roots.value / max(suited, 1e-9))
    basis = (
        f"{number / max(rows, 1):.2g} of all rows, of which {suited:.0%} have a length for roots: "
        f"{roots.value:,.0f} roots, {expected.low:,.0f} to {expected.high:,.0f} samples (95%)"
    )
    if expected.high > TOO_WIDE * expected.low:
        measured = sample.verified.verified_roots
        why = f"too little to suggest a number: only {measured:,} roots were verified"
        return Suggestion("roots.number", WITHHELD, f"{why}. {number:,} would be {basis}")
    if number > rows:
        basis += (
            f". The corpus has only {rows:,} rows: with all of them about "
            f"{samples * rows / number:,.0f} samples can be expected"
        )
    return Suggestion("roots.number", f"{min(number, rows):,}", basis)

"""Suggested settings follow from the ablation of a pilot, and say so."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from entropylong_assets.audits.ablation import SCHEMA
from entropylong_assets.report.suggestions import (
    WITHHELD,
    Suggestion,
    suggest_alpha,
    suggest_epsilon,
    suggest_top_k,
    withhold,
)


def table(knob: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    base = {
        "knob": knob,
        "rule": "calibrated",
        "roots": 8,
        "acceptance": 0.05,
        "acceptance_low": 0.03,
        "acceptance_high": 0.08,
        "anchors_per_root": 40.0,
        "dependencies_per_root": 2.0,
    }
    return pl.DataFrame([base | row for row in rows], schema=SCHEMA)


def test_alpha_rises_only_if_it_is_clearly_better() -> None:
    rows = [
        {"value": "2", "acceptance": 0.05, "acceptance_low": 0.04},
        {"value": "2.5", "acceptance": 0.09, "acceptance_low": 0.045},
        {"value": "1.5", "acceptance": None},
    ]
    assert suggest_alpha(table("alpha", rows), 2.0).value == "2"
    rows[1]["acceptance_low"] = 0.06
    suggestion = suggest_alpha(table("alpha", rows), 2.0)
    assert suggestion.value == "2.5"
    assert "40 anchors per root" in suggestion.basis
    assert suggest_alpha(table("alpha", []), 2.0).value == "2"


@pytest.mark.parametrize(
    ("rates", "highs", "value"),
    [
        ([0.0, 0.0, 0.0], [0.10, 0.08, 0.05], "0.4"),  # nothing is sure of so few trials
        ([0.01, 0.0, 0.0], [0.015, 0.01, 0.01], "0.2"),
        ([0.05, 0.03, 0.01], [0.1, 0.06, 0.03], "0.6"),
        ([0.09, 0.06, 0.05], [0.2, 0.1, 0.1], "0.6"),  # the best there is
    ],
)
def test_epsilon_follows_the_control_contexts(
    rates: list[float], highs: list[float], value: str
) -> None:
    rows = [
        {
            "value": str(epsilon),
            "false_acceptance": rate,
            "false_acceptance_high": high,
            "dependencies_per_root": 4.0 - epsilon,
        }
        for epsilon, rate, high in zip((0.2, 0.4, 0.6), rates, highs, strict=True)
    ]
    suggestion = suggest_epsilon(table("epsilon", rows), "calibrated", 0.4, 0.02)
    assert suggestion.value == value
    assert "of control contexts" in suggestion.basis


def test_epsilon_stays_if_the_rule_does_not_use_it_or_nothing_was_accepted() -> None:
    rows = [{"value": "0.2"}, {"value": "0.4"}]
    same = suggest_epsilon(table("epsilon", rows), "genuine", 0.4, 0.02)
    assert (same.value, same.basis) == (
        "0.4",
        "rule genuine accepts the same pairs at any ε looked at",
    )
    none = [row | {"dependencies_per_root": 0.0} for row in rows]
    assert "no pair was accepted" in suggest_epsilon(table("epsilon", none), "r", 0.4, 0.02).basis


@pytest.mark.parametrize(
    ("dependencies", "value"),
    [([1.0, 1.9, 1.95, 2.0], "2"), ([0.5, 1.0, 1.5, 2.0], "16"), ([1.0, 1.5, 1.7, 2.0], "8")],
)
def test_top_k_keeps_nearly_all_dependencies(dependencies: list[float], value: str) -> None:
    rows = [
        {"value": str(k), "dependencies_per_root": n}
        for k, n in zip((1, 2, 4, 8), dependencies, strict=True)
    ]
    assert suggest_top_k(table("K", rows), 8).value == value
    assert suggest_top_k(table("K", []), 8).value == "8"


def test_a_suggestion_from_too_little_is_withheld() -> None:
    """One accepted pair, of rank 1, led to the suggestion K = 1."""
    rows = table("K", [{"value": "8", "acceptance_low": 0.002, "acceptance_high": 0.5}])
    top_k = withhold(Suggestion("retrieval.top_k", "1", ""), rows.to_dicts(), 8, 5)
    assert top_k.value == WITHHELD
    assert "the 5 roots verified say only that 0.2% to 50.0%" in top_k.basis
    clear = rows.with_columns(acceptance_low=pl.lit(0.2))
    kept = Suggestion("retrieval.top_k", "4", "")
    assert withhold(kept, clear.to_dicts(), 8, 5) == kept


@pytest.mark.parametrize(
    ("setting", "present", "value", "shown"),
    [
        ("entropy.alpha", 2.0, "2", WITHHELD),
        ("entropy.alpha", 2.0, "2.5", "2.5"),  # its interval is clear of the present one's value
        ("verification.epsilon", 0.4, "0.2", "0.2"),  # surely within the limit
        ("verification.epsilon", 0.4, "0.6", WITHHELD),
    ],
)
def test_what_is_sure_is_not_withheld(setting: str, present: float, value: str, shown: str) -> None:
    rows = [{"value": f"{present:g}", "acceptance_low": 0.0, "acceptance_high": 0.3}]
    wide = table("any", rows).to_dicts()
    assert withhold(Suggestion(setting, value, ""), wide, present, 5).value == shown

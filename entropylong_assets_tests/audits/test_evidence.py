"""The page's own arithmetic, by hand."""

from __future__ import annotations

import math

import polars as pl
import pytest

from entropylong_assets.audits.audit_tables import number
from entropylong_assets.audits.evidence_pairs import equal_epsilon, shortfall_words
from entropylong_assets.audits.evidence_recipes import overlap_words, roots_needed
from entropylong_assets.audits.root_sample import Mean


@pytest.mark.parametrize(
    ("mean", "needed"),
    [
        (Mean(0.2, -0.1, 0.5, 40, 9), 21),  # 1.5 times as wide as the mean: 9 × 2.25
        (Mean(-0.2, -0.5, 0.1, 40, 9), 21),
        (Mean(0.3, 0.0, 0.6, 40, 9), 9),
        (Mean(0.0, -0.1, 0.1, 40, 9), math.inf),
        (Mean(0.2, None, None, 4, 1), math.inf),
    ],
)
def test_roots_that_would_show_a_difference(mean: Mean, needed: float) -> None:
    assert roots_needed(mean) == needed


def test_contexts_that_both_rules_accept_are_counted_once_per_root() -> None:
    rows = [
        ("r", 1, "c", ["plain", "calibrated"]),
        ("r", 2, "c", ["plain"]),  # the same context at another anchor
        ("r", 1, "d", ["plain"]),
        ("s", 1, "c", ["calibrated"]),
        ("s", 2, "d", []),
    ]
    pairs = pl.DataFrame(
        rows,
        schema={
            "root_id": pl.String,
            "anchor": pl.Int32,
            "chunk_id": pl.String,
            "accepted_by": pl.List(pl.String),
        },
        orient="row",
    )
    words = overlap_words(pairs, ["plain", "calibrated"])
    assert "Rule `plain` accepts 2 contexts" in words
    assert "rule `calibrated` 2; 1 are the same" in words


def test_words_name_the_side_of_the_threshold() -> None:
    assert "0.25 nats below" in shortfall_words(0.25, 2.0)
    assert "0.25 nats above" in shortfall_words(-0.25, 1.5)


def test_a_figure_without_trials_is_a_dash() -> None:
    assert number({"value": None, "low": 0.0, "high": 1.0}) == "–"
    row = {"rate": 0.5, "low": 0.25, "high": 0.75}
    assert number(row, "{:.0%}") == "50% (25% to 75%)"
    assert number(row | {"is_rough": True}, "{:.0%}") == "50% (25% to 75%, rough)"


def test_the_plain_rule_is_compared_with_ours_at_equally_many_accepted_pairs() -> None:
    """A stricter rule always looks better: the two are compared at the same number."""
    rows = [(0.9, ["ours"]), (0.3, []), (0.7, ["plain", "ours"]), (None, []), (0.5, ["plain"])]
    pairs = pl.DataFrame(
        rows, schema={"gain": pl.Float64, "accepted_by": pl.List(pl.String)}, orient="row"
    )
    epsilon = equal_epsilon(pairs, "ours")
    assert epsilon == 0.5
    assert (pairs["gain"] > epsilon).sum() == 2
    assert equal_epsilon(pairs, "another") is None

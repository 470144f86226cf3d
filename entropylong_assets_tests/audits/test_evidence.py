"""The page's own arithmetic, by hand."""

from __future__ import annotations

import math

import polars as pl
import pytest

from entropylong_assets.audits.audit_tables import number
from entropylong_assets.audits.evidence import overlap_words, roots_needed
from entropylong_assets.audits.evidence_pairs import equal_epsilon, shortfall_words
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


def test_contexts_that_both_rules_accept_are_counted_once_a_root() -> None:
    rows = [
        ("r", 1, "c", True, True),
        ("r", 2, "c", True, False),  # the same context at another anchor
        ("r", 1, "d", True, False),
        ("s", 1, "c", False, True),
    ]
    columns = ["root_id", "anchor", "chunk_id", "accepted_plain", "accepted_calibrated"]
    words = overlap_words(pl.DataFrame(rows, schema=columns, orient="row"))
    assert "plain rule accepts 2 contexts" in words
    assert "calibrated one 2; 1 are the same" in words


def test_words_name_the_side_of_the_threshold() -> None:
    assert "0.25 nats below" in shortfall_words(0.25, 2.0)
    assert "0.25 nats above" in shortfall_words(-0.25, 1.5)


def test_a_figure_without_trials_is_a_dash() -> None:
    assert number({"value": None, "low": 0.0, "high": 1.0}) == "–"
    assert number({"rate": 0.5, "low": 0.25, "high": 0.75}, "{:.0%}") == "50% (25% to 75%)"


def test_the_plain_rule_is_held_against_ours_at_as_many_accepted_pairs() -> None:
    """A stricter rule always looks better: the two are compared at the same number."""
    pairs = pl.DataFrame(
        {
            "gain": [0.9, 0.3, 0.7, None, 0.5],
            "accepted_calibrated": [True, False, True, False, False],
        }
    )
    epsilon = equal_epsilon(pairs)
    assert epsilon == 0.5
    assert (pairs["gain"] > epsilon).sum() == 2
    assert equal_epsilon(pairs.with_columns(accepted_calibrated=False)) is None

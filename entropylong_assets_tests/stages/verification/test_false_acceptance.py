"""False-acceptance rates and their intervals."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest

from entropylong_assets.stages.verification.false_acceptance import (
    Rate,
    acceptance_rate,
    clustered_rate,
    false_acceptance,
    held_out_controls,
    passed_by_root,
    rates_by_rule,
)
from entropylong_assets.stages.verification.gain import accepted_by, judge
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.shard_counts import ShardCounts


@pytest.mark.parametrize(("passed", "total"), [(0, 50), (1, 50), (7, 80), (80, 80), (79, 80)])
def test_single_trials_give_the_interval_of_clopper_and_pearson(passed: int, total: int) -> None:
    outcomes = np.array([1] * passed + [0] * (total - passed))
    rate = clustered_rate(outcomes, np.ones(total, np.int64))
    exact = binomtest(passed, total).proportion_ci(0.95, method="exact")
    assert (rate.passed, rate.total, rate.value) == (passed, total, passed / total)
    # The design effect's own n / (n - 1) widens a little, and never narrows.
    assert rate.low <= exact.low + 1e-12
    assert rate.high >= exact.high - 1e-12
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=0.003)


def test_clusters_that_agree_in_themselves_count_as_one_trial_each() -> None:
    """40 roots of 25 trials, all alike: the interval is nearly that of 40 trials, not of 1,000."""
    passed = np.array([25] * 4 + [0] * 36)
    rate = clustered_rate(passed, np.full(40, 25))
    roots = binomtest(4, 40).proportion_ci(0.95, method="exact")
    trials = binomtest(100, 1000).proportion_ci(0.95, method="exact")
    assert rate.value == 0.1
    assert (rate.low, rate.high) == pytest.approx((roots.low, roots.high), abs=0.01)
    assert rate.high - rate.low > 3 * (trials.high - trials.low)


def test_clusters_more_alike_than_chance_never_narrow_the_interval() -> None:
    rate = clustered_rate(np.full(40, 3), np.full(40, 25))
    exact = binomtest(120, 1000).proportion_ci(0.95, method="exact")
    assert rate.low <= exact.low
    assert rate.high >= exact.high
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=0.002)
    assert not rate.is_rough


@pytest.mark.parametrize("roots", [11, 33, 100])
@pytest.mark.parametrize("correlation", [0.02, 0.2])
@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
def test_interval_contains_the_true_rate_as_often_as_it_claims(
    roots: int, correlation: float, share: float
) -> None:
    """Simulated shards of clustered roots: intervals were too low where few trials pass.

    At 33 roots, a rate of 0.002 and a correlation of 0.2, half of the upper ends lay below it.
    """
    draw, size = np.random.default_rng(5), 1 / correlation - 1
    contained, shards = 0, 400
    for _ in range(shards):
        total = draw.integers(40, 240, roots)
        passed = draw.binomial(total, draw.beta(share * size, (1 - share) * size, roots))
        rate = clustered_rate(passed, total)
        contained += rate.low <= share <= rate.high
        assert rate.is_rough == ((passed > 0).sum() < 10)
    assert contained / shards >= 0.91


def test_rate_without_a_pass_is_as_uncertain_as_its_roots_are_few() -> None:
    zeros = np.zeros(33, np.int64)
    few, many = (clustered_rate(zeros[:n], np.full(n, 100)) for n in (11, 33))
    independent = binomtest(0, 1100).proportion_ci(0.95, method="exact").high
    of_roots = binomtest(0, 11).proportion_ci(0.95, method="exact").high
    assert 10 * independent < few.high < of_roots
    assert few.high == pytest.approx(3 * many.high, rel=0.2)
    assert few.is_rough
    assert many.is_rough


def test_a_rate_for_people_says_that_its_interval_is_rough() -> None:
    rate = Rate(1, 4, 0.125, 0.5, is_rough=True)
    assert rate.as_text("{:.1%}") == "25.0% (12.5% to 50.0%, rough)"
    assert Rate(1, 4, 0.125, 0.5).as_text() == "25.00% (12.50% to 50.00%)"


def test_no_trials_say_nothing() -> None:
    rate = clustered_rate(np.array([], np.int64), np.array([], np.int64))
    assert (rate.value, rate.total, rate.low, rate.high) == (0.0, 0, 0.0, 1.0)


ANCHORS = pl.DataFrame(
    {"root_id": ["r", "r", "s"], "anchor": [3, 5, 2], "entropy": [4.0, 4.0, 2.0],
     "surprisal": [3.0, 3.0, 3.0]},
    schema_overrides={"anchor": pl.Int32, "entropy": pl.Float32, "surprisal": pl.Float32},
)  # fmt: skip
CONTROLS = pl.DataFrame(
    [
        # r, 3: the second lowers entropy by itself, against the mean of the others as well.
        ("r", 0, 3, 4.0, 3.0), ("r", 1, 3, 1.0, 1.0), ("r", 2, 3, 4.0, 3.0),
        # r, 5: two lower it; against each other neither gains enough (ΔI* = 2.5/4 - ...).
        ("r", 0, 5, 1.0, 1.0), ("r", 1, 5, 1.0, 1.0), ("r", 2, 5, 4.0, 3.0),
        # s, 2: lower entropy, and the true token less likely.
        ("s", 0, 2, 0.5, 5.0), ("s", 1, 2, 2.0, 3.0), ("s", 2, 2, 2.0, 3.0),
    ],
    schema={"root_id": pl.String, "control": pl.Int32, "anchor": pl.Int32,
            "entropy": pl.Float32, "surprisal": pl.Float32},
    orient="row",
)  # fmt: skip


def test_each_control_is_judged_against_the_mean_of_the_others() -> None:
    held = held_out_controls(ANCHORS, CONTROLS).sort("root_id", "anchor", "control")
    assert held["entropy_control"].to_list() == [2.5, 4.0, 2.5, 2.5, 2.5, 1.0, 2.0, 1.25, 1.25]
    assert held["surprisal_control"].to_list() == [2, 3, 2, 2, 2, 1, 3, 4, 4]


BOTH_RULES = VerificationSettings(rule="calibrated", compared_rules=("plain",))


def test_rates_of_a_table_worked_out_by_hand() -> None:
    """ε = 0.4. Plain: 1.0 of 4.0 three times and 0.5 of 2.0 pass: 4 of 9.

    Calibrated: r,3,1 has (4 - 1) / 4; r,5,0 and r,5,1 have (2.5 - 1) / 4 = 0.375, too little;
    s,2,0 has 0.75 and a surprisal that rose: 1 of 9.
    """
    settings = BOTH_RULES
    rates = false_acceptance(ANCHORS, CONTROLS, settings)
    assert (rates["plain"].passed, rates["plain"].total) == (4, 9)
    assert (rates["calibrated"].passed, rates["calibrated"].total) == (1, 9)
    loose = BOTH_RULES.model_copy(update={"epsilon": 0.35})
    assert false_acceptance(ANCHORS, CONTROLS, loose)["calibrated"].passed == 3
    free = BOTH_RULES.model_copy(update={"require_surprisal_drop": False})
    assert false_acceptance(ANCHORS, CONTROLS, free)["calibrated"].passed == 2


def test_the_order_of_rows_changes_nothing_and_anchors_may_repeat() -> None:
    settings = BOTH_RULES
    pairs = pl.concat([ANCHORS, ANCHORS[::-1]])
    shuffled = CONTROLS.sample(fraction=1, shuffle=True, seed=2)
    one = rates_by_rule(passed_by_root(pairs, CONTROLS, settings), settings)
    by_root = [
        passed_by_root(pairs[::-1].filter(rows), shuffled.filter(rows), settings)
        for rows in (pl.col("root_id") == "s", pl.col("root_id") != "s")
    ]
    assert one == rates_by_rule(pl.concat(by_root), settings)
    assert {rate.total for rate in one.values()} == {9}
    assert one["calibrated"].value == pytest.approx(1 / 9)
    assert one["plain"].value == pytest.approx(4 / 9)
    assert one["calibrated"].low < 1 / 9 < one["calibrated"].high


@pytest.mark.parametrize("rule", ["plain", "calibrated"])
def test_the_rate_of_one_rule_is_that_of_its_own_verdicts(rule: str) -> None:
    """Whatever rules are evaluated beside it."""
    settings = VerificationSettings(rule=rule, compared_rules=())
    judged = judge(held_out_controls(ANCHORS, CONTROLS), settings)
    rates = false_acceptance(ANCHORS, CONTROLS, settings)
    assert rates == {rule: acceptance_rate(judged)}
    assert rates[rule] == acceptance_rate(judged, accepted_by(rule))
    assert rates[rule] == false_acceptance(ANCHORS, CONTROLS, BOTH_RULES)[rule]


def pairs_like_anchors() -> pl.DataFrame:
    """One pair per anchor, not scored."""
    unscored = [f"{a}_{b}" for a in ("entropy", "surprisal") for b in ("context", "control")]
    return ANCHORS.with_columns(
        *(pl.lit(None, pl.Float32).alias(name) for name in unscored),
        chunk_id=pl.lit("c"),
        refusal=pl.lit("not_tried"),
    )


def test_a_shard_without_controls_has_no_estimate_rather_than_a_rate_of_zero() -> None:
    rule = VerificationSettings(rule="plain", controls=0)
    counts = ShardCounts(rule)
    assert counts.summary()["false_acceptance"] == {}
    counts.add(judge(pairs_like_anchors(), rule), CONTROLS.clear())
    assert counts.summary()["control_trials"] == 0
    assert counts.summary()["false_acceptance"] == {}


def test_a_shard_with_controls_has_an_estimate_per_rule() -> None:
    rule = BOTH_RULES
    counts = ShardCounts(rule)
    counts.add(judge(pairs_like_anchors(), rule), CONTROLS)
    summary = counts.summary()
    assert summary["control_trials"] == 9
    for name, rate in false_acceptance(ANCHORS, CONTROLS, rule).items():
        estimate = summary["false_acceptance"][name]
        assert (estimate.rate, estimate.low, estimate.high) == (rate.value, rate.low, rate.high)

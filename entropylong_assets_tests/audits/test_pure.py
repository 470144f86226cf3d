"""The audits' arithmetic by hand and by simulation."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from entropylong_assets.audits.cross_model import choose_pairs, summarise
from entropylong_assets.audits.long_range import key_tokens
from entropylong_assets.audits.null_calibration import (
    epsilon_for,
    holding_epsilon,
    lift,
    rates,
    shuffle_sentences,
)
from entropylong_assets.audits.root_sample import ScoredRoot, clustered_mean
from entropylong_assets.audits.shard_audits import measures
from entropylong_assets.settings.model import make_settings

PLAIN = make_settings(
    overrides={"verification": {"rule": "plain", "controls": 0, "require_surprisal_drop": False}}
).verification


def test_sentences_keep_their_words_and_change_their_places() -> None:
    text = "One is here. Two follows! Is three third?\nFour has a line."
    shuffled = shuffle_sentences(text, 1, "chunk")
    assert shuffled is not None
    assert sorted(shuffled.split()) == sorted(text.split())
    assert shuffled.split() != text.split()
    assert shuffled == shuffle_sentences(text, 1, "chunk")
    assert "Two follows!" in shuffled
    for hopeless in ("Only one sentence here.", "", "Same.\nSame."):
        assert shuffle_sentences(hopeless, 1, "c") is None


@pytest.mark.parametrize(
    ("gains", "total", "wished", "expected"),
    [
        ([0.9, 0.5, 0.3, 0.1], 100, 0.02, 0.3),  # two may pass: those above 0.3
        ([0.9, 0.5], 100, 0.02, None),
        ([0.9, 0.5, 0.3], 3, 0.0, 0.9),
        ([], 10, 0.05, None),
    ],
)
def test_the_epsilon_lets_through_as_many_as_wished(
    gains: list[float], total: int, wished: float, expected: float | None
) -> None:
    epsilon = holding_epsilon(np.array(gains), total, wished)
    assert epsilon == expected
    if epsilon is not None:
        assert sum(g > epsilon for g in gains) <= wished * total


def trials(kind: str, gains: dict[str, list[float]]) -> pl.DataFrame:
    rows = [
        {"root_id": root, "anchor": i, "kind": kind, "entropy": 1.0, "entropy_context": 1.0 - g}
        | {"entropy_control": None, "surprisal_control": None}
        | {"surprisal": 1.0, "surprisal_context": 0.5, "accepted_plain": g > 0.4}
        | {"accepted_calibrated": False}
        for root, values in gains.items()
        for i, g in enumerate(values)
    ]
    return pl.DataFrame(
        rows, schema_overrides={"entropy_control": pl.Float32, "surprisal_control": pl.Float32}
    )


def test_rates_epsilon_and_lift_by_hand() -> None:
    random = trials("random", {"a": [0.5, 0.1, 0.0, 0.0], "b": [0.2, 0.3, 0.0, 0.0]})
    pairs = trials("retrieved", {"a": [0.9, 0.8, 0.1, 0.0], "b": [0.6, 0.5, 0.1, 0.1]})
    table = {(r["kind"], r["rule"]): r for r in rates(random, pairs)}
    assert (table["random", "plain"]["passed"], table["random", "plain"]["total"]) == (1, 8)
    assert table["retrieved", "plain"]["rate"] == 0.5
    assert table["topical", "plain"]["rate"] is None
    found = lift(random, pairs, "plain")
    assert found["lift"] == 4.0
    assert found["lift_low"] is not None
    assert found["lift_low"] < 4.0 < (found["lift_high"] or float("inf"))
    # One of eight may pass at 0.125: the second largest random gain, 0.3.
    held = epsilon_for(random, PLAIN, 0.125, seed=1)
    assert held["epsilon_for_rate"] == pytest.approx(0.3)
    assert held["epsilon_low"] is None or held["epsilon_low"] <= 0.3 + 1e-9
    assert held["epsilon_high"] >= 0.3 - 1e-9
    nothing = epsilon_for(random.clear(), PLAIN, 0.05, seed=1)
    assert nothing["epsilon_for_rate"] is None


def test_lift_without_chance_has_no_upper_end() -> None:
    random = trials("random", {"a": [0.0] * 50, "b": [0.1] * 50})
    pairs = trials("retrieved", {"a": [0.9] * 25, "b": [0.9] * 25})
    found = lift(random, pairs, "plain")
    assert found["lift"] is found["lift_high"] is None
    assert found["lift_low"] is not None
    assert found["lift_low"] > 10


def test_key_tokens_need_both_a_gain_and_a_low_loss() -> None:
    short = np.array([np.nan, 5.0, 5.0, 3.9, 6.0, 2.1], np.float32)
    long = np.array([np.nan, 1.0, 2.5, 1.95, 1.9, 0.0], np.float32)
    #                no prefix  yes  loss  gain   yes  yes
    assert key_tokens(short, long) == 3


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Trials of one cluster move together: an interval that took them for independent would
    cover far too seldom."""
    rng, covered, naive = np.random.default_rng(3), 0, 0
    for _ in range(300):
        shift = rng.normal(0, 1, 12)
        values = (shift[:, None] + rng.normal(0, 0.3, (12, 20))).ravel()
        names = [str(i) for i in range(12) for _ in range(20)]
        mean = clustered_mean(values.tolist(), names)
        assert mean.low is not None
        assert mean.high is not None
        covered += mean.low <= 0 <= mean.high
        reach = 1.96 * values.std() / np.sqrt(len(values))
        naive += abs(values.mean()) <= reach
    assert 0.90 <= covered / 300 <= 0.99
    assert naive / 300 < 0.7
    assert clustered_mean([1.0, 2.0], ["a", "a"]).low is None
    assert clustered_mean([], []).value is None


def test_the_second_model_is_asked_where_the_rules_differ() -> None:
    """Else the few pairs that the plain rule alone accepts are lost among the many rejected."""
    verdicts = [(True, True)] * 5 + [(True, False)] * 3 + [(False, False)] * 200
    pairs = pl.DataFrame(
        [
            {"root_id": "r", "anchor": i, "chunk_id": f"c-{i}", "gain": 0.5}
            | {"accepted_plain": plain, "accepted_calibrated": calibrated}
            for i, (plain, calibrated) in enumerate(verdicts)
        ]
    )
    nothing = np.array([], np.float32)
    chosen = choose_pairs([ScoredRoot("r", [], nothing, nothing, pairs)], 4, 1)
    assert [row["anchor"] for row in chosen] == sorted(row["anchor"] for row in chosen)
    counted = [(row["accepted_plain"], row["accepted_calibrated"]) for row in chosen]
    assert [counted.count(v) for v in dict.fromkeys(verdicts)] == [4, 3, 4]
    scored = pl.DataFrame(chosen).with_columns(
        holds=pl.col("accepted_calibrated"),
        second_gain=pl.col("gain"),
        second_surprisal=pl.lit(3.0),
        second_surprisal_context=pl.when("accepted_plain").then(1.0).otherwise(3.0),
    )
    found = summarise(scored)
    groups = ("both_rules", "plain_rule_alone", "neither_rule")
    assert [found[f"{g}_pairs"] for g in groups] == [4, 3, 4]
    assert [found[f"{g}_holds"] for g in groups] == [1.0, 0.0, 0.0]
    assert [found[f"{g}_surprisal_drop"] for g in groups] == [2.0, 2.0, 0.0]


def test_recipes_are_compared_on_the_roots_that_all_of_them_have() -> None:
    """A window too long for the model is missing under one recipe: its root would move the mean
    of the others alone."""
    window = {"context_tokens": 10, "root_tokens": 10, "dependency_score": None}
    windows = [
        {"recipe": recipe, "root_id": root, "key_tokens": 1 if root == "a" else 9} | window
        for recipe, root in (("calibrated", "a"), ("calibrated", "b"), ("random", "a"))
    ]
    rows = {(r["recipe"], r["measure"]): r for r in measures([], windows, [])}
    for recipe in ("calibrated", "random"):
        assert rows[recipe, "key_token_density"]["value"] == 0.1
        assert rows[recipe, "context_tokens"]["roots"] == 1

"""The audits' arithmetic by hand and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from entropylong_assets.audits.cross_model import choose_pairs, group_label, group_rows, summarize
from entropylong_assets.audits.null_calibration import epsilon_for, holding_epsilon, lift, rates
from entropylong_assets.audits.null_contexts import shuffle_sentences
from entropylong_assets.audits.recipe_measures import measures
from entropylong_assets.audits.root_sample import ScoredRoot, clustered_mean
from entropylong_assets.audits.windows import key_tokens
from entropylong_assets.stages.verification.settings import VerificationSettings

PLAIN = VerificationSettings(rule="plain", controls=0, require_surprisal_drop=False)
RULES = ("plain", "calibrated")


def test_sentences_keep_their_words_and_change_their_places() -> None:
    text = "One is here. Two follows! Is three third?\nFour has a line."
    shuffled = shuffle_sentences(text, 1, "chunk")
    assert shuffled is not None
    assert sorted(shuffled.split()) == sorted(text.split())
    assert shuffled.split() != text.split()
    assert shuffled == shuffle_sentences(text, 1, "chunk")
    assert "Two follows!" in shuffled
    # Neither a version nor an initial within a word ends a sentence.
    assert shuffle_sentences("Install v1.2 of lib.so first", 1, "chunk") is None
    for hopeless in ("Only one sentence here.", "", "Same.\nSame."):
        assert shuffle_sentences(hopeless, 1, "c") is None


@pytest.mark.parametrize(
    "sentences",
    [
        ["灯塔很旧。", "他问：「谁来点灯？」", "没有人回答！"],
        ["灯台は古い。", "誰も来なかった。"],
        ["यह दीपक पुराना है। ", "वहाँ कोई नहीं रहता। "],
        ["මෙය පැරණියි. ", "එහි කවුරුත් නැත. "],
        ["هل وصلت السفينة؟ ", "نعم وصلت. "],
        ["ក្រុងនេះចាស់។", "គ្មានអ្នកណានៅទេ។"],
        ["မီးပြတိုက်ဟောင်း။", "လူမရှိပါ။"],
        ["ཉིན་མོ་བཟང་།", "མཚན་མོ་བཟང་།"],
        ["ሰላም ነው። ", "ማንም የለም። "],
    ],
)
def test_sentences_of_any_script_change_their_places(sentences: list[str]) -> None:
    shuffled = shuffle_sentences("".join(sentences).strip(), 1, "chunk")
    assert shuffled is not None
    left = shuffled
    for sentence in sentences:
        assert sentence.strip() in left
        left = left.replace(sentence.strip(), "")
    assert left.strip() == ""
    assert shuffled != "".join(sentences).strip()


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
        | {"surprisal": 1.0, "surprisal_context": 0.5, "accepted_by": ["plain"] if g > 0.4 else []}
        for root, values in gains.items()
        for i, g in enumerate(values)
    ]
    controls = {"entropy_control": pl.Float32, "surprisal_control": pl.Float32}
    return pl.DataFrame(rows, schema_overrides=controls | {"accepted_by": pl.List(pl.String)})


def test_rates_epsilon_and_lift_by_hand() -> None:
    random = trials("random", {"a": [0.5, 0.1, 0.0, 0.0], "b": [0.2, 0.3, 0.0, 0.0]})
    pairs = trials("retrieved", {"a": [0.9, 0.8, 0.1, 0.0], "b": [0.6, 0.5, 0.1, 0.1]})
    table = {(r["kind"], r["rule"]): r for r in rates(random, pairs, RULES)}
    assert (table["random", "plain"]["passed"], table["random", "plain"]["total"]) == (1, 8)
    assert table["retrieved", "plain"]["rate"] == 0.5
    assert table["random", "calibrated"]["passed"] == 0
    assert table["topical", "plain"]["rate"] is None
    up = lift(random, pairs, "plain")
    assert up["lift"] == 4.0
    assert up["lift_low"] is not None
    assert up["lift_low"] < 4.0 < (up["lift_high"] or float("inf"))
    # One of eight may pass at 0.125: the second largest random gain, 0.3.
    held = epsilon_for(random, PLAIN, 0.125, seed=1)
    assert held["epsilon_for_rate"] == pytest.approx(0.3)
    assert held["epsilon_low"] is None or held["epsilon_low"] <= 0.3 + 1e-9
    assert held["epsilon_high"] is not None
    assert held["epsilon_high"] >= 0.3 - 1e-9
    nothing = epsilon_for(random.clear(), PLAIN, 0.05, seed=1)
    assert nothing["epsilon_for_rate"] is None


def test_lift_without_an_accepted_random_context_has_no_upper_end() -> None:
    roots = [f"r{number}" for number in range(40)]
    random = trials("random", {root: [0.0, 0.1] for root in roots})
    pairs = trials("retrieved", {root: [0.9] for root in roots})
    up = lift(random, pairs, "plain")
    assert up["lift"] is up["lift_high"] is None
    assert up["lift_low"] is not None
    assert up["lift_low"] > 10


def test_key_tokens_need_both_a_gain_and_a_low_loss() -> None:
    short = np.array([np.nan, 5.0, 5.0, 3.9, 6.0, 2.1], np.float32)
    long = np.array([np.nan, 1.0, 2.5, 1.95, 1.9, 0.0], np.float32)
    #                no prefix  yes  loss  gain   yes  yes
    assert key_tokens(short, long) == 3


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Trials of one cluster are correlated: an interval that took them for independent would cover
    the mean far too rarely."""
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


def test_pairs_for_the_second_model_are_chosen_from_every_group() -> None:
    """Otherwise there would be hardly any of the few pairs that only the plain rule accepts."""
    both, plain, neither = ["plain", "calibrated"], ["plain"], list[str]()
    verdicts = [both] * 5 + [plain] * 3 + [neither] * 200
    pairs = pl.DataFrame(
        [
            {"root_id": "r", "anchor": i, "chunk_id": f"c-{i}", "gain": 0.5, "accepted_by": rules}
            for i, rules in enumerate(verdicts)
        ]
    )
    nothing = np.array([], np.float32)
    chosen = choose_pairs([ScoredRoot("r", [], nothing, nothing, pairs)], 4, 1)
    assert [row["anchor"] for row in chosen] == sorted(row["anchor"] for row in chosen)
    rules = [row["accepted_by"] for row in chosen]
    assert [rules.count(v) for v in (both, plain, neither)] == [4, 3, 4]
    assert choose_pairs([], 4, 1) == []
    is_plain = pl.col("accepted_by").list.contains("plain")
    scored = pl.DataFrame(chosen).with_columns(
        holds=pl.col("accepted_by").list.contains("calibrated"),
        second_gain=pl.col("gain"),
        second_surprisal=pl.lit(3.0),
        second_surprisal_context=pl.when(is_plain).then(1.0).otherwise(3.0),
    )
    groups = {"plain, calibrated": (4, 1.0, 2.0), "plain": (3, 0.0, 2.0), "none": (4, 0.0, 0.0)}
    assert list(group_rows(scored)) == list(groups), "those of most rules first"
    figures = summarize(scored)
    for group, (count, holds, drop) in groups.items():
        assert figures["pairs_by_group"][group] == count
        assert figures["holds"][group] == holds
        assert figures["surprisal_drop"][group] == drop
        assert group not in figures["surprisal_drop_low"], "an interval from a single root"
    assert figures["gain_rank_correlation"] is None
    assert summarize(scored.clear())["pairs_by_group"] == {}


def test_groups_of_any_rules_have_words() -> None:
    rows = [["theirs"], [], ["plain", "calibrated", "theirs"], ["plain"]]
    pairs = pl.DataFrame({"accepted_by": rows}, schema={"accepted_by": pl.List(pl.String)})
    assert [group_label(group) for group in group_rows(pairs)] == [
        "accepted by plain and calibrated and theirs",
        "accepted by plain alone",
        "accepted by theirs alone",
        "accepted by no rule",
    ]


def test_recipes_are_compared_on_the_roots_that_all_of_them_have() -> None:
    """A window that is too long for the model is missing under one recipe: its root would change
    the means of the others only."""
    window: dict[str, Any] = {"context_tokens": 10, "root_tokens": 10, "dependency_score": None}
    windows = [
        {"recipe": recipe, "root_id": root, "key_tokens": 1 if root == "a" else 9} | window
        for recipe, root in (("calibrated", "a"), ("calibrated", "b"), ("random", "a"))
    ]
    rows = {(r["recipe"], r["measure"]): r for r in measures([], windows, [])}
    for recipe in ("calibrated", "random"):
        assert rows[recipe, "key_token_density"]["value"] == 0.1
        assert rows[recipe, "context_tokens"]["roots"] == 1

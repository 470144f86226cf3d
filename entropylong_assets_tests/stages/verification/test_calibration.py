"""The calibrated decision on simulated pairs, whose exact gains are known."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize
from scipy.stats import binom

from entropylong_assets.stages.verification.calibration import (
    AUDITED,
    KEY,
    Calibration,
    Decision,
    allowed_misses,
    decide,
    held_out_recall,
    is_audited,
    needed_contexts,
)
from entropylong_assets.stages.verification.logistic import PENALTY, fit


def simulated(roots: int, seed: int, *, contexts: int = 100, bias: float = 0.0) -> pl.DataFrame:
    """Pairs of some roots: gains of which one in sixteen is above 0.4, and two estimates of them.

    Errors follow Student's t with two degrees of freedom, which has no variance, and one in 250
    pairs has an estimate that knows nothing. bias: added to estimates of accepted pairs.
    """
    draw = np.random.default_rng(seed)
    n = roots * contexts
    level = np.repeat(draw.normal(0, 0.05, roots), contexts)
    gain = level + draw.normal(0.02, 0.245, n)
    accepted = gain > 0.4
    splice = gain + 0.03 * draw.standard_t(2, n) + bias * accepted
    blind = draw.random(n) < 0.004
    splice = np.where(blind, draw.normal(0.02, 0.245, n), splice)
    bare = gain + 0.06 * draw.standard_t(2, n) + bias * accepted
    names = [f"{seed}-{root}" for root in range(roots)]
    return pl.DataFrame(
        {
            "root_id": np.repeat(names, contexts),
            "chunk_id": [f"c{number // 2}" for number in range(n)],  # two anchors per context
            "anchor": np.arange(n),
            "splice_gain": splice.clip(-2, 2),
            "bare_gain": bare.clip(-2, 2),
            "token_in_context": (draw.random(n) < np.where(accepted, 0.9, 0.3)).astype(float),
            "accepted": accepted,
            "is_audit": np.zeros(n, bool),
            "is_kept": np.ones(n, bool),
        }
    )


def missed_share(decision: Decision, rows: pl.DataFrame) -> float:
    """Share of the contexts with an accepted pair that the decision does not keep."""
    kept = set(decision.keeps(rows).iter_rows())
    contexts = set(rows.filter("accepted").select(KEY).iter_rows())
    return len(contexts - kept) / len(contexts)


def test_the_threshold_holds_its_recall_with_heavy_tails() -> None:
    """With 90% confidence means: in at most about one of ten calibrations it is exceeded."""
    fresh = simulated(2000, 10_000)
    missed, shares = [], []
    for seed in range(40):
        decision = decide(simulated(120, seed), 0.98)
        assert decision is not None
        missed.append(missed_share(decision, fresh))
        shares.append(len(decision.keeps(fresh)) / fresh.select(KEY).n_unique())
    exceeded = sum(share > 0.02 for share in missed)
    # Of 40 calibrations that each exceed it with probability 0.1, more than 8 do in 2% of cases.
    assert exceeded <= binom.ppf(0.98, 40, 0.1)
    assert np.mean(missed) < 0.02
    assert 0.1 < np.mean(shares) < 0.5, "otherwise nothing is screened out, or nothing is left"
    # A threshold at the same share of misses without a bound exceeds it in every second case.
    assert np.median(missed) > 0.005, "the bound costs some exact scores, not most"


def test_the_recall_of_held_out_roots_is_that_of_fresh_ones() -> None:
    rows, fresh = simulated(150, 1), simulated(2000, 2)
    decision = decide(rows, 0.98)
    assert decision is not None
    rate, share = held_out_recall(rows, decision.missed)
    assert rate.total == int(rows["accepted"].sum())
    kept = fresh.join(decision.keeps(fresh), on=KEY, how="semi")
    true = kept["accepted"].sum() / fresh["accepted"].sum()
    assert rate.low < true < rate.high
    assert share == pytest.approx(
        len(decision.keeps(fresh)) / fresh.select(KEY).n_unique(), abs=0.03
    )


@pytest.mark.parametrize(("recall", "contexts"), [(0.995, 460), (0.99, 230), (0.9, 22)])
def test_few_accepted_contexts_decide_nothing(recall: float, contexts: int) -> None:
    """The smallest n with recall^n ≤ 0.1: no miss among fewer shows nothing with 90% confidence."""
    assert needed_contexts(recall) == contexts
    assert recall**contexts <= 0.1 < recall ** (contexts - 1)
    assert allowed_misses(contexts, recall) == 0
    assert allowed_misses(contexts - 1, recall) is None
    for number in (contexts, 5 * contexts, 11 * contexts):
        misses = allowed_misses(number, recall)
        assert misses is not None
        # The bound of Clopper and Pearson by its definition.
        assert (
            binom.cdf(misses, number, 1 - recall) <= 0.1 < binom.cdf(misses + 1, number, 1 - recall)
        )


def test_estimates_that_say_nothing_reject_nothing() -> None:
    rows = simulated(150, 4)
    draw = np.random.default_rng(5)
    noise = {name: draw.normal(size=len(rows)) for name in ("splice_gain", "bare_gain")}
    blind = rows.with_columns(**{n: pl.Series(v) for n, v in noise.items()}, token_in_context=0.0)
    assert decide(rows, 0.98) is not None
    assert decide(blind, 0.98) is None


def in_batches(calibration: Calibration, rows: pl.DataFrame, size: int = 8) -> list[bool]:
    """Let a shard learn from its roots as verification does. Return which roots are decided on."""
    decided, names = [], rows["root_id"].unique(maintain_order=True).to_list()
    for start in range(0, len(names), size):
        batch = names[start : start + size]
        decision = calibration.decision
        decided += [calibration.decides(name) for name in batch]
        both_ways = [name for name in batch if not calibration.decides(name)]
        learned = rows.filter(pl.col("root_id").is_in(both_ways))
        if decision is not None:
            kept = set(decision.keeps(learned).iter_rows())
            flags = [key in kept for key in learned.select(KEY).iter_rows()]
            learned = learned.with_columns(
                is_audit=pl.lit(True), is_kept=pl.Series(flags, dtype=pl.Boolean)
            )
        calibration.add(learned, len(batch))
    return decided


def test_a_shard_decides_once_it_knows_enough_and_audits_some_roots_forever() -> None:
    calibration = Calibration(0.95, 800)
    decided = in_batches(calibration, simulated(800, 6))
    first = decided.index(True)
    assert not any(decided[:8])
    assert 8 <= first < 100
    assert calibration.drifts == 0
    audited = 1 - np.mean(decided[first:])
    assert audited == pytest.approx(1 / AUDITED, abs=0.03)
    figures = calibration.metadata()
    assert figures["audited_accepted"] > 100
    assert figures["audited_kept"] / figures["audited_accepted"] > 0.93
    assert figures["recall_low"] < figures["recall"] < figures["recall_high"]
    assert figures["weight_splice_gain"] > figures["weight_token_in_context"] > 0


def test_a_changed_corpus_is_noticed_and_learned_anew() -> None:
    """Guards against a decision that outlives the documents that it was fitted to."""
    before, after = simulated(300, 7), simulated(900, 8, bias=-0.15)
    calibration = Calibration(0.95, 2400)
    decided = in_batches(calibration, pl.concat([before, after]))
    assert decided[299 - 30 : 299].count(True) > 20
    assert calibration.drifts == 1
    again = decided.index(False, 330)
    assert not all(decided[again : again + 8])
    assert decided[-30:].count(True) > 20
    fresh = simulated(500, 9, bias=-0.15)
    assert calibration.decision is not None
    assert missed_share(calibration.decision, fresh) < 0.05


def test_a_shard_that_can_not_pay_stops_estimating() -> None:
    poor = simulated(60, 11).with_columns(accepted=pl.lit(False))
    calibration = Calibration(0.995, 60)
    decided = in_batches(calibration, poor)
    assert not any(decided)
    assert calibration.is_off
    assert "recall" not in calibration.metadata()
    assert not Calibration(0.995, 60).is_off


def test_audited_roots_are_chosen_by_their_ids_alone() -> None:
    names = [hashlib.md5(str(i).encode()).hexdigest() for i in range(4000)]
    chosen = [is_audited(name) for name in names]
    assert np.mean(chosen) == pytest.approx(1 / AUDITED, abs=0.015)
    assert chosen == [is_audited(name) for name in names]


@pytest.mark.parametrize("case", ["usual", "separable", "one kind", "rare"])
def test_the_regression_minimises_its_loss(case: str) -> None:
    """Against a general minimiser of the same loss, written out here."""
    draw = np.random.default_rng(0)
    features = draw.normal(3, [1, 5, 0.01], (400, 3))
    z = (features - features.mean(0)) / features.std(0)
    score = z @ [2, -1, 0.5] + draw.normal(0, 1 if case != "separable" else 0, 400)
    positive = {"one kind": np.zeros(400, bool), "rare": score > np.sort(score)[-3]}.get(
        case, score > 0
    )

    def loss(weights: np.ndarray) -> float:
        logits = weights[0] + z @ weights[1:]
        signs = np.where(positive, -1, 1)
        return float(np.logaddexp(0, signs * logits).sum() + PENALTY / 2 * (weights[1:] ** 2).sum())

    found = fit(features, positive)
    ours = np.array([found.intercept, *found.weight_F])
    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
    assert loss(ours) <= best.fun + 1e-4
    if case in ("usual", "separable"):
        assert np.allclose(ours, best.x, atol=1e-3)
        assert np.allclose(found.logits(features), ours[0] + z @ ours[1:])
    repeated = fit(features.copy(), positive.copy())
    assert repeated.intercept == found.intercept
    assert np.array_equal(repeated.weight_F, found.weight_F)


def test_a_feature_that_never_varies_has_no_weight() -> None:
    draw = np.random.default_rng(1)
    features = np.stack([draw.normal(size=300), np.full(300, 0.1)], 1)
    found = fit(features, features[:, 0] > 0)
    assert found.weight_F[1] == 0
    assert np.isfinite(found.logits(features + 5)).all()

"""Gains and verdicts of rows worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.settings import VerificationSettings

FLOATS = [
    "entropy",
    "entropy_context",
    "entropy_control",
    "surprisal",
    "surprisal_context",
    "surprisal_control",
]
SCHEMA = pl.Schema(dict.fromkeys(FLOATS, pl.Float32) | {"refusal": pl.String})


def judged(*scores: float | None, refusal: str | None = None, **rule: Any) -> dict[str, Any]:
    values = {"rule": "calibrated", "compared_rules": ("plain", "calibrated"), **rule}
    settings = VerificationSettings.model_validate(values)
    row = dict(zip(FLOATS, scores, strict=True)) | {"refusal": refusal}
    return judge(pl.DataFrame([row], schema=SCHEMA), settings).row(0, named=True)


# entropy: alone, given the context, given controls; surprisal likewise. ε = 0.4.
CASES: dict[str, tuple[tuple[float | None, ...], float | None, float | None, str, str]] = {
    # scores, ΔI, ΔI*, verdict under `plain`, verdict under `calibrated`
    "both gains": ((4, 1, 3.5, 3, 1, 2.5), 0.75, 0.625, "accepted", "accepted"),
    "controls do it too": ((4, 1, 1.5, 3, 1, 2), 0.75, 0.125, "accepted", "gain_too_small"),
    "controls make it worse": ((4, 2, 5, 3, 1, 4), 0.5, 0.5, "accepted", "accepted"),
    "at ε": ((5, 3, 5, 3, 1, 3), 0.4, 0.4, "gain_too_small", "gain_too_small"),
    "entropy rises": ((4, 6, 4, 3, 1, 3), -0.5, -0.5, "gain_too_small", "gain_too_small"),
    "surprisal rises": ((4, 1, 4, 3, 3.5, 4), 0.75, 0.75, "accepted", "surprisal_rose"),
    "surprisal stays": ((4, 1, 4, 3, 3, 4), 0.75, 0.75, "accepted", "surprisal_rose"),
    "less than alone, more than given controls": (
        (4, 1, 4, 3, 2, 1.5), 0.75, 0.75, "accepted", "surprisal_rose",
    ),
    "both too small and rose": ((4, 3, 4, 3, 9, 3), 0.25, 0.25, "gain_too_small",
                                "gain_too_small"),
    "certain already": ((0, 0, 0, 0, 0, 0), None, None, "gain_too_small", "gain_too_small"),
    "all of it": ((4, 0, 4, 3, 0, 3), 1.0, 1.0, "accepted", "accepted"),
    "no controls to be had": ((4, 1, None, 3, 1, None), 0.75, None, "accepted", "no_control"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", ["plain", "calibrated"])
def test_gains_and_verdicts(case: str, rule: str) -> None:
    scores, gain, calibrated, plain_verdict, calibrated_verdict = CASES[case]
    row = judged(*scores, rule=rule)
    assert row["gain"] == pytest.approx(gain)
    assert row["calibrated_gain"] == pytest.approx(calibrated)
    assert row["verdict"] == (plain_verdict if rule == "plain" else calibrated_verdict)
    verdicts = {"plain": plain_verdict, "calibrated": calibrated_verdict}
    assert row["accepted_by"] == [name for name, v in verdicts.items() if v == "accepted"]
    assert row["accepted"] is (rule in row["accepted_by"])


@pytest.mark.parametrize("refusal", ["near_duplicate", "too_long_for_model", "not_tried"])
@pytest.mark.parametrize("rule", ["plain", "calibrated"])
def test_judge_keeps_the_reason_of_a_pair_that_was_not_scored(rule: str, refusal: str) -> None:
    row = judged(4, None, 3, 3, None, 2, refusal=refusal, rule=rule)
    assert row["verdict"] == refusal
    assert (row["gain"], row["calibrated_gain"]) == (None, None)
    assert (row["accepted"], row["accepted_by"]) == (False, [])


def test_surprisal_counts_only_if_the_rule_and_the_settings_say_so() -> None:
    scores = CASES["surprisal rises"][0]
    assert judged(*scores, require_surprisal_drop=False)["verdict"] == "accepted"
    assert judged(*scores, rule="plain", require_surprisal_drop=True)["verdict"] == "accepted"


@pytest.mark.parametrize(("epsilon", "accepted"), [(0.74, True), (0.75, False), (-1.0, True)])
def test_a_gain_must_exceed_epsilon(epsilon: float, accepted: bool) -> None:
    assert judged(4, 1, 4, 3, 1, 3, epsilon=epsilon)["accepted"] is accepted


@pytest.mark.parametrize("rule", ["plain", "calibrated"])
@pytest.mark.parametrize("broken", [1, 2, 4])
def test_a_score_that_is_not_a_number_accepts_nothing(rule: str, broken: int) -> None:
    scores: list[float | None] = [4, 1, 4, 3, 1, 3]
    scores[broken] = math.nan
    row = judged(*scores, rule=rule)
    if broken == 1:
        assert "plain" not in row["accepted_by"]
    assert "calibrated" not in row["accepted_by"]


@pytest.mark.parametrize("compared", [(), ("plain",), ("calibrated", "plain")])
def test_accepted_by_names_the_compared_rules_and_the_rule_in_force(
    compared: tuple[str, ...],
) -> None:
    """Here both rules accept, and the calibrated one is in force."""
    row = judged(*CASES["both gains"][0], compared_rules=compared)
    assert row["accepted_by"] == [
        r for r in ("plain", "calibrated") if r in (*compared, "calibrated")
    ]
    assert row["accepted"]

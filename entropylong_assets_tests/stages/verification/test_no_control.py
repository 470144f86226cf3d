from __future__ import annotations

import polars as pl
import pytest

from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.settings import VerificationSettings


@pytest.mark.parametrize(("rule", "verdict"), [("calibrated", "no_control"), ("plain", "accepted")])
def test_judge_names_a_missing_control(rule: str, verdict: str) -> None:
    """Guards against `gain_too_small` for every pair of a corpus too small for controls."""
    pair = {
        "entropy": 6.0,
        "entropy_context": 0.1,
        "entropy_control": None,
        "surprisal": 5.0,
        "surprisal_context": 0.1,
        "surprisal_control": None,
        "refusal": None,
    }
    schema = dict.fromkeys(pair, pl.Float32) | {"refusal": pl.String}
    judged = judge(pl.DataFrame([pair], schema=schema), VerificationSettings(rule=rule))
    assert judged["verdict"].to_list() == [verdict]
    assert judged["accepted"].to_list() == [verdict == "accepted"]

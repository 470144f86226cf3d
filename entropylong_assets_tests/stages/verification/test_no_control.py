from __future__ import annotations

import polars as pl
import pytest

from entropylong_assets.settings.model import VerificationSettings
from entropylong_assets.stages.verification.gain import judge


@pytest.mark.parametrize(("rule", "verdict"), [("calibrated", "no_control"), ("plain", "accepted")])
def test_a_pair_that_no_control_could_judge_says_so(rule: str, verdict: str) -> None:
    """In a corpus too small to draw controls from, every gain was once called too small."""
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

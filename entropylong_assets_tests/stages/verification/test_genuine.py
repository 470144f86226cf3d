"""Rule `genuine`: each reason of its own, and the limits as the corpus grows."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from entropylong_assets.stages.verification.false_acceptance import passed_by_root
from entropylong_assets.stages.verification.gain import TEXT_COLUMNS, judge
from entropylong_assets.stages.verification.settings import VerificationSettings

SETTINGS = VerificationSettings(rule="genuine")
SCORES = ("entropy", "entropy_context", "entropy_control")
SCORES += ("surprisal", "surprisal_context", "surprisal_control")
ACCEPTED: dict[str, Any] = {
    "entropy": 4.0,
    "entropy_context": 3.9,
    "entropy_control": 4.2,
    "surprisal": 6.0,
    "surprisal_context": 4.0,
    "surprisal_control": 5.5,
    "word": "Hertzog",
    "anchor_kind": None,
    "phrase_documents": 8,
    "pair_documents": 60,
    "counted_documents": 1000,
    "has_word": True,
    "refusal": None,
}


def verdict(change: dict[str, Any], settings: VerificationSettings = SETTINGS) -> str:
    schema = {**dict.fromkeys(SCORES, pl.Float32), **TEXT_COLUMNS, "refusal": pl.String}
    row = judge(pl.DataFrame([ACCEPTED | change], schema=schema), settings)
    assert row["accepted"].item() == (row["verdict"].item() == "accepted")
    found: str = row["verdict"].item()
    return found


def test_small_gains_suffice_where_the_context_has_the_word() -> None:
    assert verdict({}) == "accepted"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entropy_control": None, "surprisal_control": None}, "no_control"),
        ({"entropy_control": float("nan")}, "no_control"),
        ({"word": None, "anchor_kind": "symbol", "has_word": None}, "no_word"),
        ({"anchor_kind": "import"}, "excluded_anchor"),
        ({"anchor_kind": "url"}, "excluded_anchor"),
        ({"entropy_context": 4.0}, "gain_too_small"),
        ({"entropy_context": float("nan")}, "gain_too_small"),
        # 1 - 4.4 / 5.5 = 0.2: of the lower surprisal, the one given the controls.
        ({"surprisal_context": 4.41}, "surprisal_gain_too_small"),
        ({"surprisal_context": float("nan")}, "surprisal_gain_too_small"),
        ({"surprisal": 4.9}, "surprisal_gain_too_small"),
        ({"has_word": False}, "word_not_in_context"),
        ({"has_word": None}, "word_not_in_context"),
        ({"phrase_documents": 9}, "common_phrase"),
        ({"pair_documents": 61}, "common_phrase"),
        # The first reason that holds is given.
        ({"phrase_documents": 9, "has_word": False}, "word_not_in_context"),
        ({"refusal": "not_tried", "entropy_context": None}, "not_tried"),
    ],
)
def test_each_refusal_has_its_reason(change: dict[str, Any], reason: str) -> None:
    assert verdict(change) == reason


def test_a_reference_is_excluded_on_demand() -> None:
    settings = SETTINGS.model_copy(update={"excluded_anchors": ("reference",)})
    assert verdict({"anchor_kind": "reference"}) == "accepted"
    assert verdict({"anchor_kind": "reference"}, settings) == "excluded_anchor"
    assert verdict({"anchor_kind": "import"}, settings) == "accepted"


@pytest.mark.parametrize(("counted", "limit"), [(10, 8), (8000, 8), (16_000, 16), (20_000, 20)])
def test_limits_of_phrases_grow_with_a_large_corpus(counted: int, limit: int) -> None:
    assert verdict({"counted_documents": counted, "phrase_documents": limit}) == "accepted"
    assert verdict({"counted_documents": counted, "phrase_documents": limit + 1}) != "accepted"


def test_a_control_with_the_word_by_chance_counts_as_false_acceptance() -> None:
    """Otherwise the rate of the rule would be zero by construction."""
    anchor = {name: ACCEPTED[name] for name in TEXT_COLUMNS if name != "has_word"}
    pairs = pl.DataFrame(
        [anchor | {"root_id": "r", "anchor": 3, "entropy": 4.0, "surprisal": 6.0}],
        schema_overrides={"entropy": pl.Float32, "surprisal": pl.Float32, "anchor_kind": pl.String},
    )
    rows = [
        {
            "root_id": "r",
            "control": n,
            "anchor": 3,
            "has_word": has_word,
            "entropy": h,
            "surprisal": i,
        }
        for n, (has_word, h, i) in enumerate(
            [(True, 2.0, 2.0), (False, 2.0, 2.0), (True, 4.5, 6.0)]
        )
    ]
    overrides = {"entropy": pl.Float32, "surprisal": pl.Float32}
    controls = pl.DataFrame(rows, schema_overrides=overrides)
    counted = passed_by_root(pairs, controls, SETTINGS).filter(rule="genuine")
    assert counted.select("passed", "total").row(0) == (1, 3)

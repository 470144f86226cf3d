"""An empty export names the first stage that yielded nothing, not always ε."""

from __future__ import annotations

from typing import Any

import pytest

from entropylong_assets.project import make_project
from entropylong_assets.stages.training_data.empty_stage import first_empty_stage

FUNNEL = (
    "documents",
    "documents_drawn",
    "roots_scored",
    "anchors",
    "candidates",
    "pairs_scored",
    "pairs_accepted",
)


@pytest.mark.parametrize(
    ("first_empty", "setting"),
    [
        ("documents", "corpus.sources"),
        ("documents_drawn", "roots.number"),
        ("roots_scored", "roots.min_tokens"),
        ("anchors", "entropy.alpha"),
        ("candidates", "the index"),
        ("pairs_scored", "retrieval.max_containment"),
        ("pairs_accepted", "verification.epsilon"),
        (None, "samples.tokens"),
    ],
)
def test_first_empty_stage_names_its_own_settings(first_empty: str | None, setting: str) -> None:
    """The advice was to lower ε, also if no document had been drawn as a root."""
    end = FUNNEL.index(first_empty) if first_empty else len(FUNNEL)
    figures: dict[str, Any] = {name: 7 if i < end else 0 for i, name in enumerate(FUNNEL)}
    figures["near_duplicates_refused"] = 7
    settings = make_project({"verification": {"rule": "calibrated"}}).dataset
    line = first_empty_stage(figures, settings)
    assert setting in line
    assert "\n" not in line
    assert ("epsilon" in line) == (first_empty == "pairs_accepted")
    # Rule `genuine` does not read ε.
    assert "epsilon" not in first_empty_stage(figures, make_project({}).dataset)

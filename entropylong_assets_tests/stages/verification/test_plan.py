"""The plan of a root's forward passes."""

from __future__ import annotations

import polars as pl
import pytest

from entropylong_assets.stages.verification.root_verification import RootCandidates, plan_root


@pytest.mark.parametrize(
    ("max_positions", "length"),
    [
        (100, 30),
        (31, 29),  # BOS, the control and the root up to its last anchor just fit
    ],
)
def test_controls_are_as_long_as_the_longest_candidate_that_is_scored(
    max_positions: int, length: int
) -> None:
    """A long text helps more often by chance, so a long candidate needs a control as long."""
    candidates = pl.DataFrame(
        [
            {"anchor": 0, "rank": 1, "chunk_id": "a", "similarity": 0.9, "leak_check": "passed"},
            {"anchor": 0, "rank": 2, "chunk_id": "b", "similarity": 0.8, "leak_check": "passed"},
            {"anchor": 0, "rank": 3, "chunk_id": "c", "similarity": 0.7, "leak_check": "passed"},
            {"anchor": 0, "rank": 4, "chunk_id": "copy", "similarity": 0.6,
             "leak_check": "near_duplicate"},
        ]
    )  # fmt: skip
    context_ids = {"a": [1] * 10, "b": [1] * (length), "c": [1] * 12, "copy": [1] * 90}
    root = RootCandidates("r", [1, 2, 3, 4], [1.0] * 4, [1.0] * 4, candidates)
    asked: list[int] = []

    def draw(_: RootCandidates, wanted: int) -> list[object]:
        asked.append(wanted)
        return []

    plan = plan_root(root, context_ids, [5], max_positions, draw)  # type: ignore[arg-type]
    assert asked == [length]
    assert plan.refusals == {"copy": "near_duplicate"}

"""A shard is verified a few roots at a time: none of its tables is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.verification import shard_verification
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.shard_counts import ShardCounts
from entropylong_assets.stages.verification.shard_verification import read_roots
from entropylong_assets.stages.verification.stored_scores import rows_by_root
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore


def candidate(root: str, anchor: int, rank: int) -> dict[str, Any]:
    return {
        "root_id": root,
        "anchor": anchor,
        "rank": rank,
        "chunk_id": f"c{anchor}-{rank}",
        "similarity": 0.5,
        "found_by": "vector",
        "containment": 0.0,
        "leak_check": "passed",
        "has_word": None,
    }


def root(name: str) -> dict[str, Any]:
    return {
        "root_id": name,
        "token_ids": [1, 2],
        "entropies": [1.0, 2.0],
        "surprisals": [1.0, 2.0],
        "mean": 1.5,
        "std": 0.5,
        "threshold": 2.0,
        "surprisal_mean": 1.5,
        "surprisal_std": 0.5,
        "anchors": [1],
        "by_surprisal": [],
    }


def test_rows_of_a_root_are_joined_over_the_ends_of_batches() -> None:
    rows = pl.DataFrame({"root_id": list("aaabbbbbbcdd"), "n": range(12)})
    for size in (1, 2, 5, 12):
        parts = list(rows_by_root(rows.iter_slices(size)))
        assert [name for name, _ in parts] == list("abcd")
        assert pl.concat([part for _, part in parts]).equals(rows)


def test_a_root_is_yielded_before_the_candidates_of_the_next_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TableStore(str(tmp_path))
    names = [f"r{i:03d}" for i in range(200)]
    with store.write(ENTROPY_SCORES, "s", fingerprint="f") as writer:
        writer.append("roots", [root(name) for name in names])
    with store.write(CANDIDATE_CONTEXTS, "s", fingerprint="f") as writer:
        writer.append("candidates", [candidate(n, 1, r) for n in names[::2] for r in (2, 1)])
    read = 0
    batches = TableStore.batches

    def counted(self: TableStore, *args: Any, **kwargs: Any) -> Iterator[pl.DataFrame]:
        nonlocal read
        for batch in batches(self, *args, **kwargs | {"rows": 10}):
            read += len(batch) if args[0] is CANDIDATE_CONTEXTS else 0
            yield batch

    monkeypatch.setattr(TableStore, "batches", counted)
    given = 0
    for found in read_roots(store, "s", 100):
        given += 1
        assert found.candidates["rank"].to_list() == [1, 2]
        assert read <= 2 * given + 20
    assert given == 100


def test_candidates_in_another_order_than_the_roots_are_refused(tmp_path: Path) -> None:
    """They would be skipped silently."""
    store = TableStore(str(tmp_path))
    with store.write(ENTROPY_SCORES, "s", fingerprint="f") as writer:
        writer.append("roots", [root("a"), root("b")])
    with store.write(CANDIDATE_CONTEXTS, "s", fingerprint="f") as writer:
        writer.append("candidates", [candidate("b", 1, 1), candidate("a", 1, 1)])
    with pytest.raises(
        TableError, match=r"root a is not in the order of .*; materialize candidate_"
    ):
        list(read_roots(store, "s", 100))


def test_counts_of_batches_are_those_of_the_whole() -> None:
    draw = pl.Series(range(120)).sample(fraction=1, shuffle=True, seed=1)
    pairs = pl.DataFrame(
        {
            "root_id": [f"r{i // 12}" for i in range(120)],
            "anchor": [i % 4 for i in range(120)],
            "chunk_id": [f"c{i % 6}" for i in range(120)],
            "entropy": [float(i % 4) for i in range(120)],
            "surprisal": [1.0] * 120,
            "entropy_context": [None if i % 5 == 0 else 0.5 for i in range(120)],
            "gain": [None if i % 5 == 0 else i / 100 - 0.5 for i in draw],
            "calibrated_gain": [None if i % 5 == 0 else i / 130 - 0.5 for i in draw],
            "accepted": [i % 5 != 0 and i % 3 == 0 for i in range(120)],
            "accepted_by": [
                [rule for rule, n in (("plain", 2), ("calibrated", 3)) if i % n == 0]
                for i in range(120)
            ],
            "verdict": [f"v{i % 4}" for i in range(120)],
        },
        schema_overrides=dict.fromkeys(("entropy", "entropy_context", "surprisal"), pl.Float32),
    )
    controls = pl.DataFrame(
        {
            "root_id": [f"r{i // 8}" for i in range(80)],
            "control": [i % 2 for i in range(80)],
            "anchor": [i // 2 % 4 for i in range(80)],
            "entropy": [(i % 7) / 3 for i in range(80)],
            "surprisal": [(i % 5) / 3 for i in range(80)],
        },
        schema_overrides={"control": pl.Int32, "entropy": pl.Float32, "surprisal": pl.Float32},
    )
    settings = VerificationSettings(rule="calibrated", compared_rules=("plain", "genuine"))
    whole, parts = ShardCounts(settings), ShardCounts(settings)
    whole.add(pairs, controls)
    for number in range(10):
        mine = pl.col("root_id") == f"r{number}"
        parts.add(pairs.filter(mine), controls.filter(mine))
    one, other = whole.summary(), parts.summary()
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "false_acceptance":
            assert value.keys() == other[name].keys() == {"plain", "calibrated", "genuine"}
            assert all(
                other[name][rule].model_dump() == pytest.approx(rate.model_dump())
                for rule, rate in value.items()
            )
        else:
            assert other[name] == pytest.approx(value), name
    accepted = pairs.filter("accepted")
    assert one["accepted"] == len(accepted) > 20
    assert one["mean_gain"] == pytest.approx(accepted["gain"].mean())
    assert one["accepted_by"] == {"plain": 60, "calibrated": 40, "genuine": 0}
    assert one["pairs_scored"] == 96
    assert one["control_trials"] == 80
    assert parts.best.equals(whole.best)
    assert parts.best["gain"].to_list() == accepted["gain"].sort(descending=True)[:5].to_list()
    assert parts.histograms["gain"].counts.sum() == pairs["gain"].count()
    assert shard_verification.ROOTS_PER_BATCH < 100

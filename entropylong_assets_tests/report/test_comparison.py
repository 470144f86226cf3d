"""Comparison of two datasets, against sets and sums made here row by row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from entropylong_assets.report.comparison import Overlap, compare_datasets
from entropylong_assets.report.run import RunSource, open_dataset
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets_tests.report.runs import SHARDS, run_settings, write_run

Pair = tuple[str, int, str]


def rows_of(source: RunSource, tables: TableSet[Any], table: str) -> list[dict[str, Any]]:
    return [row for s in SHARDS for row in source.store.read(tables, s, table).to_dicts()]


def key(row: dict[str, Any]) -> Pair:
    return row["root_id"], row["anchor"], row["chunk_id"]


def accepted_pairs(source: RunSource) -> set[Pair]:
    return {key(p) for p in rows_of(source, VERIFIED_DEPENDENCIES, "pairs") if p["accepted"]}


def rejected_pairs(source: RunSource) -> set[Pair]:
    """Scored, and accepted in no shard."""
    pairs = rows_of(source, VERIFIED_DEPENDENCIES, "pairs")
    scored = {key(p) for p in pairs if p["entropy_context"] is not None}
    return scored - accepted_pairs(source)


def made(settings: Settings, seed: int = 1) -> RunSource:
    write_run(settings, seed)
    return open_dataset(settings)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSource, RunSource, RunSource]:
    """Two datasets that differ in ε and sample length, and one over other documents."""
    folder = tmp_path_factory.mktemp("compared")
    first = made(run_settings(folder / "it's a", verification={"epsilon": 0.5}))
    second = made(
        run_settings(folder / "b", verification={"epsilon": 0.05}, samples={"tokens": 3000})
    )
    return first, second, made(run_settings(folder / "c"), seed=2)


@pytest.mark.parametrize(("left", "right"), [(0, 1), (1, 0), (0, 2), (1, 1)])
def test_compare_datasets_matches_a_count_by_hand(
    sources: tuple[RunSource, ...], left: int, right: int
) -> None:
    a, b = sources[left], sources[right]
    compared = compare_datasets(a, b)
    for source, counts in ((a, compared.a), (b, compared.b)):
        roots = rows_of(source, ENTROPY_SCORES, "roots")
        pairs = rows_of(source, VERIFIED_DEPENDENCIES, "pairs")
        segments = rows_of(source, LONG_CONTEXT_SAMPLES, "segments")
        assert counts.roots == len(roots)
        assert counts.anchors == sum(len(root["anchors"]) for root in roots)
        resolved = {(p["root_id"], p["anchor"]) for p in pairs if p["accepted"]}
        assert counts.resolved_anchors == len(resolved) > 0
        assert counts.acceptance.passed == sum(p["accepted"] for p in pairs)
        assert counts.acceptance.total == sum(p["gain"] is not None for p in pairs)
        assert counts.acceptance.low < counts.acceptance.value < counts.acceptance.high
        assert counts.false_acceptance is not None
        assert counts.false_acceptance.total == len(
            rows_of(source, VERIFIED_DEPENDENCIES, "controls")
        )
        samples = rows_of(source, LONG_CONTEXT_SAMPLES, "samples")
        assert counts.samples == len(samples)
        assert counts.dependencies == len(rows_of(source, LONG_CONTEXT_SAMPLES, "dependencies"))
        tokens: Counter[str] = Counter()
        for segment in segments:
            tokens[segment["role"]] += segment["end"] - segment["start"]
        assert counts.tokens_by_role == tokens
        assert sum(tokens.values()) == len(samples) * source.settings.samples.tokens

    ours, theirs = accepted_pairs(a), accepted_pairs(b)
    assert compared.pairs == Overlap(len(ours & theirs), len(ours - theirs), len(theirs - ours))
    assert compared.pairs.jaccard == pytest.approx(len(ours & theirs) / len(ours | theirs))
    assert compared.rejected_by_b == len(ours & rejected_pairs(b))
    assert compared.rejected_by_a == len(theirs & rejected_pairs(a))
    roots_of = [{r["root_id"] for r in rows_of(s, ENTROPY_SCORES, "roots")} for s in (a, b)]
    assert compared.roots == Overlap(
        len(roots_of[0] & roots_of[1]),
        len(roots_of[0] - roots_of[1]),
        len(roots_of[1] - roots_of[0]),
    )


def test_compare_datasets_tells_rejected_pairs_from_pairs_not_scored(
    sources: tuple[RunSource, ...],
) -> None:
    strict, lenient, other = sources
    compared = compare_datasets(strict, lenient)
    assert compared.pairs.both == compared.a.acceptance.passed > 0, "the same scores, a lower ε"
    assert compared.pairs.only_a == compared.rejected_by_b == 0
    assert compared.pairs.only_b == compared.rejected_by_a > 0
    apart = compare_datasets(lenient, other)
    assert apart.pairs.both == apart.roots.both == apart.rejected_by_b == 0
    assert apart.pairs.only_a > 0
    assert apart.pairs.jaccard == 0


def test_comparison_lists_the_settings_that_differ(sources: tuple[RunSource, ...]) -> None:
    compared = compare_datasets(*sources[:2])
    assert [row for row in compared.settings if row[0] != "corpus"] == [
        ("verification.epsilon", "0.5", "0.05"),
        ("samples.tokens", "2400", "3000"),
    ]
    assert compare_datasets(sources[0], sources[0]).settings == []


def test_comparison_rows_and_lines_are_text(sources: tuple[RunSource, ...]) -> None:
    compared = compare_datasets(*sources[:2])
    rows = {name: (a, b) for name, a, b in compared.rows()}
    assert all(isinstance(text, str) for row in compared.rows() for text in row)
    assert rows["verification.epsilon"] == ("0.5", "0.05")
    assert rows["roots"] == ("10", "10")
    assert rows["pairs accepted"][0].startswith(f"{compared.a.acceptance.passed:,}: ")
    assert "tokens: verified" in rows
    roots, pairs = compared.overlap_lines()
    assert roots == "roots: 10 in both, 0 only in A, 0 only in B"
    assert f"{compared.pairs.both:,} in both" in pairs
    assert f"Jaccard index {compared.pairs.jaccard:.4f}" in pairs


def test_an_overlap_of_nothing_has_no_jaccard_index() -> None:
    assert Overlap(0, 0, 0).jaccard is None
    assert Overlap(1, 2, 1).jaccard == 0.25

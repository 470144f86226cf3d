"""Totals from a sample, against sums by hand, and intervals, against repeated sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from entropylong_assets.report.replicates import (
    QUANTITIES,
    Accepted,
    Measured,
    Rows,
    point,
    replicates,
)

NOTHING = Accepted(np.zeros(0), np.zeros(0), np.zeros(0))


def rows_of(tokens: list[float], source_rows: int, share: float, shards: int = 1) -> Rows:
    n = len(tokens)
    return Rows(
        source_rows=source_rows,
        source_shards=shards,
        is_complete=n == source_rows,
        share=share,
        shard=np.arange(n) % shards,
        is_document=np.ones(n),
        chars=4 * np.array(tokens),
        tokens=np.array(tokens),
        is_drawn=np.ones(n, np.bool_),
        measured=np.full(n, -1),
    )


def measured_of(tokens: list[float], per_token: float = 0.1, **over: object) -> Measured:
    """Roots of one anchor and one pass per 10 tokens; a pass takes 100 tokens and half the root."""
    t = np.array(tokens)
    values = {
        "anchors": per_token * t,
        "passes": per_token * t,
        "pass_tokens": per_token * t * (100 + t / 2),
        "pairs": 2 * per_token * t,
        "control_tokens": 3 * t,
    }
    table = np.stack([values[name] for name in QUANTITIES], axis=1)
    return replace(Measured(t, table, table, 0.0, True, 100.0), **over)  # type: ignore[arg-type]


def test_point_matches_a_sum_by_hand() -> None:
    """4 of 40 rows are known and a quarter of the documents is drawn, so that each row stands for
    2.5 roots of its own length. The lengths of the measured roots have no effect."""
    totals = point([rows_of([100, 200, 300, 0], 40, 0.25)], measured_of([50, 500]), NOTHING)
    assert totals.documents == 40
    assert totals.drawn == pytest.approx(7.5)
    assert totals.root_tokens == pytest.approx(2.5 * 600)
    assert totals.passes == totals.anchors == pytest.approx(2.5 * 60)
    work = 0.1 * (100 * 150 + 200 * 200 + 300 * 250)
    assert totals.pass_tokens == pytest.approx(2.5 * work)
    assert totals.control_tokens == pytest.approx(2.5 * 1800)


def test_dependencies_follow_the_accepted_share_of_contexts() -> None:
    accepted = Accepted(np.array([8.0, 2.0]), np.array([2.0, 0.0]), np.array([6.0, 0.0]))
    totals = point([rows_of([100], 10, 1.0)], measured_of([100]), accepted)
    assert totals.contexts_accepted == pytest.approx(100 * 0.2)  # 10 roots of 10 contexts
    assert totals.dependencies == pytest.approx(100 * 0.2 * 3)
    assert totals.roots_with_dependency == pytest.approx(10 * (1 - 0.8**10))


def test_limits_per_root_are_kept() -> None:
    rows = [rows_of([100], 10, 1.0)]
    accepted = Accepted(np.array([10.0]), np.array([5.0]), np.array([5.0]))
    free = point(rows, measured_of([100]), accepted)
    few = point(rows, measured_of([100], max_contexts=1), accepted)
    assert free.passes == pytest.approx(100)
    assert few.passes == pytest.approx(20)  # two are tried for one that is accepted
    assert few.contexts_accepted == pytest.approx(10)
    # 300 of 1,050 tokens are left for candidates, of which a root takes 1,500.
    tight = point(rows, measured_of([100], max_tokens=1050), accepted)
    assert tight.pass_tokens == pytest.approx(10 * 750)
    assert tight.control_tokens == free.control_tokens


def test_a_source_that_was_read_as_a_whole_leaves_nothing_open() -> None:
    rows = rows_of([100, 200, 300], 3, 0.5)
    rows = replace(rows, measured=np.arange(3))
    measured = measured_of([100, 200, 300])
    for totals in replicates([rows], measured, NOTHING, 5, 1):
        assert (totals.documents, totals.drawn, totals.passes) == (3, 3, pytest.approx(60))


def test_a_search_in_a_part_of_the_chunks_leaves_the_contexts_open() -> None:
    """60 contexts of which a fifth was searched: 12 were seen, with a deviation of √(12·0.8)."""
    rows = replace(rows_of([100, 200, 300], 3, 0.5), measured=np.arange(3))
    measured = measured_of([100, 200, 300], pool_share=0.2)
    totals = replicates([rows], measured, NOTHING, 2000, 1)
    assert np.std([t.passes for t in totals]) == pytest.approx(np.sqrt(12 * 0.8) / 0.2, rel=0.1)
    assert np.ptp([t.anchors for t in totals]) < 1e-9


def test_intervals_cover_what_repeated_samples_show() -> None:
    """The oracle is the population: 1,500 lengths of a heavy tail, sampled again and again."""
    draw = np.random.default_rng(7)
    population = np.exp(draw.normal(5, 0.8, 1500))
    ratios = draw.gamma(8, 1 / 8, 1500)
    misses = 0
    for trial in range(60):
        drawn = draw.random(1500) < 0.1
        work = population * (100 + population / 2) * 0.1 * ratios
        truth = work[drawn].sum()
        chosen = draw.choice(1500, 150, replace=False)
        measured = measured_of([float(population[i]) for i in chosen[:20]])
        table = measured.shared * ratios[chosen[:20], None]
        sample = replace(measured, shared=table, unshared=table)
        rows = [rows_of([float(population[i]) for i in chosen], 1500, 0.1)]
        tokens = [t.pass_tokens for t in replicates(rows, sample, NOTHING, 200, trial)]
        low, high = np.quantile(tokens, [0.025, 0.975])
        misses += not low <= truth <= high
    assert misses <= 9  # 85%


def test_intervals_widen_if_other_shards_were_not_read() -> None:
    """Documents of one shard are alike: the shards are drawn again, not only their rows."""
    tokens = [100.0 * (1 + i % 4) for i in range(80)]
    rows = rows_of(tokens, 4000, 1.0, shards=4)
    measured = measured_of([100, 400])

    def width(source: Rows) -> float:
        tokens = [t.root_tokens for t in replicates([source], measured, NOTHING, 100, 3)]
        return float(np.std(tokens))

    assert width(replace(rows, source_shards=50)) > 2 * width(rows)


def test_anchors_that_share_no_context_are_the_upper_limit() -> None:
    measured = measured_of([100, 300])
    open_ended = replace(measured, unshared=2 * measured.shared, trend=0.5, is_certain=False)
    rows = [rows_of([100], 10, 1.0)]
    low, high = point(rows, measured, NOTHING).passes, 2 * point(rows, measured, NOTHING).passes
    assert point(rows, open_ended, NOTHING).passes == pytest.approx((low + high) / 2)
    passes = [t.passes for t in replicates(rows, open_ended, NOTHING, 300, 2)]
    assert low <= min(passes) < low + 0.2 * (high - low)
    assert high >= max(passes) > high - 0.2 * (high - low)

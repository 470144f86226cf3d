"""Anchors against float64 sums, and the rows made from scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.anchors import (
    Anchors,
    Moments,
    find_anchors,
    is_anchor,
    root_request,
    score_roots,
)
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.settings import EntropySettings


def entropies(seed: int, n: int, undefined: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).gamma(2.0, 1.3, n).astype(np.float32)
    values[:undefined] = np.nan
    return values


@pytest.mark.parametrize("undefined", [0, 1])
@pytest.mark.parametrize("n", [2, 5, 300, 4000])
@pytest.mark.parametrize(("alpha", "first"), [(2.0, 32), (0.0, 0), (1.5, 3), (-1.0, 1)])
def test_find_anchors_equals_plain_sums(n: int, undefined: int, alpha: float, first: int) -> None:
    values_T = entropies(n, n, undefined)
    result = find_anchors(
        values_T, values_T, EntropySettings(alpha=alpha, min_anchor_position=first)
    )
    defined = [float(h) for h in values_T if not math.isnan(h)]
    mean = math.fsum(defined) / len(defined)
    std = math.sqrt(math.fsum((h - mean) ** 2 for h in defined) / len(defined))
    assert result.entropy.mean == pytest.approx(mean, rel=1e-12)
    assert result.entropy.std == pytest.approx(std, rel=1e-12)
    assert result.entropy.threshold(alpha) == pytest.approx(mean + alpha * std, rel=1e-12)
    wanted = [t for t, h in enumerate(values_T) if float(h) > mean + alpha * std and t >= first]
    assert list(result.positions) == wanted
    assert wanted or n < 300


def test_find_anchors_counts_early_positions_in_the_mean_only() -> None:
    values_T = np.array([np.nan, 9, 1, 1, 1, 9], np.float32)
    result = find_anchors(values_T, values_T, EntropySettings(alpha=1.0, min_anchor_position=2))
    assert result.positions == (5,)
    assert result.entropy.mean == pytest.approx(21 / 5)


@pytest.mark.parametrize("value", [0.1, 1.0, 3.3333333])
def test_find_anchors_finds_none_among_equal_entropies(value: float) -> None:
    for n in (3, 7, 4095):
        values_T = np.full(n, value, np.float32)
        assert (
            find_anchors(values_T, values_T, EntropySettings(min_anchor_position=0)).positions == ()
        )


@pytest.mark.parametrize("values", [[], [np.nan]])
def test_find_anchors_finds_none_without_a_defined_position(values: list[float]) -> None:
    result = find_anchors(*[np.array(values, np.float32)] * 2, EntropySettings())
    assert result == Anchors(Moments(0, 0), Moments(0, 0), (), ())


@pytest.mark.parametrize("undefined", [0, 1])
@pytest.mark.parametrize(
    ("alpha", "first", "floor"), [(2.0, 32, 1.0), (0.5, 0, 0.0), (-1.0, 3, 0.1)]
)
def test_anchors_by_surprisal_equal_plain_sums(
    undefined: int, alpha: float, first: int, floor: float
) -> None:
    entropies_T, surprisals_T = entropies(1, 4000, undefined), entropies(2, 4000, undefined)
    settings = EntropySettings(
        alpha=alpha, anchors="both", min_entropy=floor, min_anchor_position=first
    )
    result = find_anchors(entropies_T, surprisals_T, settings)

    def limit(values_T: NDArray[np.float32]) -> float:
        defined = [float(v) for v in values_T if not math.isnan(v)]
        mean = math.fsum(defined) / len(defined)
        return mean + alpha * math.sqrt(math.fsum((v - mean) ** 2 for v in defined) / len(defined))

    tau, surprising = limit(entropies_T), limit(surprisals_T)
    wanted = {
        t: float(h) <= tau
        for t, (h, i) in enumerate(zip(entropies_T, surprisals_T, strict=True))
        if t >= first and (float(h) > tau or (float(i) > surprising and float(h) > floor))
    }
    assert list(result.positions) == list(wanted)
    assert list(result.by_surprisal) == [t for t, alone in wanted.items() if alone]
    assert 0 < len(result.by_surprisal) < len(result.positions)
    by_entropy = find_anchors(
        entropies_T, surprisals_T, settings.model_copy(update={"anchors": "entropy"})
    )
    assert set(by_entropy.positions) == set(result.positions) - set(result.by_surprisal)
    assert by_entropy.by_surprisal == ()


@pytest.mark.parametrize("anchors", ["entropy", "both"])
def test_is_anchor_finds_what_find_anchors_does(anchors: Literal["entropy", "both"]) -> None:
    """At another α too: the failure is an ablation that drops the anchors by surprisal."""
    entropies_T, surprisals_T = entropies(1, 4000, 1), entropies(2, 4000, 1)
    settings = EntropySettings(alpha=1.0, anchors=anchors, min_anchor_position=0)
    result = find_anchors(entropies_T, surprisals_T, settings)
    frame = pl.DataFrame({"entropy": entropies_T, "surprisal": surprisals_T}, nan_to_null=True)
    frame = frame.with_row_index("t").with_columns(
        mean=result.entropy.mean,
        std=result.entropy.std,
        surprisal_mean=result.surprisal.mean,
        surprisal_std=result.surprisal.std,
    )
    for alpha in (1.0, 2.5):
        other = settings.model_copy(update={"alpha": alpha})
        wanted = find_anchors(entropies_T, surprisals_T, other).positions
        assert frame.filter(is_anchor(settings, alpha))["t"].to_list() == list(wanted)
        assert wanted


class Echo:
    """Scores a position by its token id: entropy id / 8, surprisal id / 4."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        self.batches.append(len(requests))
        scores = []
        for request in requests:
            ids_N = request.token_ids_T[request.positions_N].astype(np.float32)
            scores.append(PositionScores(ids_N / 8, ids_N / 4))
            on_progress(len(request.token_ids_T))
        return scores


@pytest.mark.parametrize("bos_ids", [(), (1,)])
def test_score_roots_gives_each_token_its_score_and_the_first_only_after_a_bos(
    bos_ids: tuple[int, ...],
) -> None:
    settings, scorer = EntropySettings(alpha=1.0, min_anchor_position=0), Echo()
    roots = [(f"r{i}", [8 * (i + 1 + t % 3) for t in range(2 + i)]) for i in range(7)]
    forward: list[int] = []

    def on_progress(tokens: int, _: float) -> None:
        forward.append(tokens)

    rows = list(score_roots(iter(roots), scorer, bos_ids, settings, 3, on_progress))
    assert scorer.batches[:2] == [3, 3]
    assert sum(scorer.batches) == 7
    assert sum(forward) == sum(len(ids) + len(bos_ids) for _, ids in roots)
    for row, (root_id, ids) in zip(rows, roots, strict=True):
        assert (row["root_id"], row["token_ids"]) == (root_id, ids)
        known = 0 if bos_ids else 1
        assert row["entropies"] == [None] * known + [i / 8 for i in ids[known:]]
        assert row["surprisals"] == [None] * known + [i / 4 for i in ids[known:]]
        assert all(row["entropies"][t] > row["threshold"] for t in row["anchors"])


@pytest.mark.parametrize("bos_ids", [(), (1,)])
def test_score_roots_scores_a_root_of_one_token(bos_ids: tuple[int, ...]) -> None:
    request = root_request([5], bos_ids)
    assert list(request.token_ids_T) == [*bos_ids, 5]
    assert list(request.positions_N) == ([1] if bos_ids else [])
    (row,) = score_roots([("r", [5])], Echo(), bos_ids, EntropySettings())
    assert len(row["entropies"]) == 1
    assert row["anchors"] == []


def test_progress_follows_the_scored_tokens_of_a_batch() -> None:
    """A shard of one batch was "100%, 0 s left" from its first forward pass."""
    shares: list[float] = []

    def on_progress(_: int, share: float) -> None:
        shares.append(share)

    roots = [(f"r{i}", [8] * 9) for i in range(5)]
    list(score_roots(roots, Echo(), (1,), EntropySettings(), 4, on_progress))
    # Echo counts 10 tokens per root; the last of them is no input of a forward pass.
    assert shares == pytest.approx([10 / 36, 20 / 36, 30 / 36, 1.0, 1.0])

"""Windows, their scores and evidence against brute force."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.natural_documents.evidence import (
    Occurrence,
    evidence_rows,
    find_earlier,
    gzip_ratio,
    information_gain,
)
from entropylong_assets.stages.natural_documents.selection import keep_windows
from entropylong_assets.stages.natural_documents.settings import NaturalSettings
from entropylong_assets.stages.natural_documents.windows import (
    Window,
    WindowScores,
    cut_windows,
    paragraph_starts,
    score_windows,
    slides,
)
from entropylong_assets_tests.stages.entropy import tiny


def test_paragraphs_begin_after_empty_lines() -> None:
    text = "ab cd\n\nef\ngh\n \n  ij"
    spans = [(i, i + 1) for i in range(len(text))]
    assert [text[p] for p in paragraph_starts(text, spans)] == ["e", "i"]
    # A token across the border: the paragraph begins with the first whole token after it.
    assert paragraph_starts("a\n\nbc d", [(0, 1), (1, 4), (4, 5), (5, 7)]).tolist() == [2]
    assert paragraph_starts("a\n\n", [(0, 1), (1, 3)]).tolist() == []


def test_windows_are_whole_disjoint_and_begin_paragraphs_where_possible() -> None:
    draw = np.random.default_rng(0)
    at_paragraphs = 0
    for _ in range(300):
        n, size = int(draw.integers(0, 400)), int(draw.integers(8, 90))
        paragraphs = np.unique(draw.integers(1, max(2, n), int(draw.integers(0, 60))))
        starts = cut_windows(n, size, paragraphs)
        assert all(b - a >= size for a, b in pairwise(starts))
        assert not starts or (starts[0] == 0 and starts[-1] + size <= n)
        for a, b in pairwise(starts):
            assert b == a + size or (b in paragraphs and b - a - size <= size / 8)
            at_paragraphs += b in paragraphs
            possible = [p for p in paragraphs if a + size <= p <= min(a + size * 1.125, n - size)]
            assert b == (possible[0] if possible else a + size)
        last = starts[-1] + size if starts else 0
        assert n - last < size
    assert at_paragraphs > 50


@pytest.mark.parametrize("bos", [[1], []])
def test_every_token_is_scored_once_with_half_a_window_before_it(bos: list[int]) -> None:
    tokens = np.arange(3, 103)
    scored: list[int] = []
    for slide in slides(tokens, bos, 20):
        assert len(slide.request.token_ids_T) <= 20
        positions = slide.request.positions_N - len(bos) + slide.start
        assert slide.request.token_ids_T[slide.request.positions_N].tolist() == (
            tokens[positions].tolist()
        )
        assert range(*slide.scored.indices(100)) == range(positions[0], positions[-1] + 1)
        if slide.start:
            assert min(positions) - slide.start >= 8
        scored += positions.tolist()
    assert scored == list(range(0 if bos else 1, 100))


class Taught:
    """A scorer whose surprisal of a token is its distance to the sequence's start."""

    def score(
        self, requests: Sequence[ScoringRequest], on_progress: Callable[[int], None] = print
    ) -> list[PositionScores]:
        values = [r.positions_N.astype(np.float32) for r in requests]
        return [PositionScores(v, v) for v in values]


def window(tokens: np.ndarray) -> Window:
    return Window("d", "s", 0, 0, tokens.astype(np.int64), "text")


def test_scores_and_starts_belong_to_the_same_sequence() -> None:
    (scores,) = score_windows([window(np.arange(3, 103))], Taught(), [1], (101, 20))
    assert scores.long_T.tolist() == [i + 1 for i in range(100)]
    assert (scores.short_T == np.arange(100) - scores.short_start_T + 1).all()
    assert not scores.long_start_T.any()
    assert scores.short_start_T.max() > 50


def test_scores_are_those_of_a_plain_pass() -> None:
    model = tiny.llama()
    tokens = np.random.default_rng(2).integers(3, tiny.VOCAB, 60)
    (scores,) = score_windows([window(tokens)], PackedScorer(model), [1], (61, 16))
    whole = np.concatenate([[1], tokens])
    plain = score_plainly(model, ScoringRequest(whole, np.arange(1, 61))).surprisal_N
    assert np.allclose(scores.long_T, plain, atol=1e-4)
    for t in range(60):
        start = int(scores.short_start_T[t])
        part = np.concatenate([[1], tokens[start : t + 1]])
        alone = score_plainly(model, ScoringRequest(part, np.array([t - start + 1])))
        assert abs(float(alone.surprisal_N[0] - scores.short_T[t])) < 1e-4
    expected = math.fsum(
        math.exp(-float(a)) * (float(b) - float(a))
        for a, b in zip(scores.long_T, scores.short_T, strict=True)
    )
    assert information_gain(scores) == pytest.approx(expected / 60)


def brute_force(ids: list[int], position: int, first: int, before: int) -> Occurrence | None:
    for n in range(position + 1, 0, -1):
        for end in range(before - 1, first + n - 2, -1):
            if ids[end - n + 1 : end + 1] == ids[position - n + 1 : position + 1]:
                return Occurrence(end, n)
    return None


def test_earlier_occurrence_is_the_nearest_longest() -> None:
    draw = np.random.default_rng(3)
    occurrences = []
    for _ in range(400):
        ids = draw.integers(0, 4, 40)
        position = int(draw.integers(5, 40))
        first, before = sorted(draw.integers(0, position, 2).tolist())
        expected = brute_force(ids.tolist(), position, first, before)
        assert find_earlier(ids, position, first, before) == expected
        occurrences.append(expected)
    assert None in occurrences
    assert max(f.n_tokens for f in occurrences if f) >= 4


def test_evidence_names_tokens_that_need_the_far_context() -> None:
    ids = np.array([5, 6, 7, 8, 9, 10, 5, 6, 11, 12])
    zero = np.zeros(10, np.int64)
    long = np.full(10, 1.0, np.float32)
    short = np.full(10, 2.9, np.float32)
    short[[7, 8]] = 5.0
    long[9], short[9] = 2.5, 9.0  # still uncertain in the long window
    short_start = np.array([0, 0, 0, 0, 0, 0, 4, 4, 4, 4])
    scores = WindowScores(long, short, zero, short_start)
    rows = list(evidence_rows("w", ids, scores, offset=1))
    assert [(r["position"], r["found_at"], r["ngram_tokens"]) for r in rows] == [
        (8, 2, 2),
        (9, None, None),
    ]
    assert rows[0]["short_start"] == 5


def test_ratio_is_that_of_zlib_at_level_6() -> None:
    text = "the same words again and again, ä. " * 30
    data = text.encode()
    header_and_trailer = 18 - 6  # of gzip, more than those of zlib
    expected = (len(gzip.compress(data, 6)) - header_and_trailer) / len(data)
    assert gzip_ratio(text) == pytest.approx(expected)


def test_top_share_within_the_bounds_is_kept() -> None:
    settings = NaturalSettings(keep=0.4, min_gzip_ratio=0.2, max_gzip_ratio=0.6)
    windows = [
        ("a", 9.0, 0.1),
        ("b", 3.0, 0.5),
        ("c", 4.0, 0.2),
        ("d", 8.0, 0.7),
        ("e", 3.0, 0.3),
        ("f", 1.0, 0.6),
    ]
    expected = ["too_repetitive", None, None, "too_dense", "low_gain", "low_gain"]
    assert keep_windows(windows, settings) == expected
    order = np.random.default_rng(0).permutation(6).tolist()
    assert keep_windows([windows[i] for i in order], settings) == [expected[i] for i in order]
    everything = keep_windows(windows, settings.model_copy(update={"keep": 1.0}))
    assert everything.count(None) == 4

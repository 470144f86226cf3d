"""Rows are sampled from the whole range of a shard, within a bound on what is read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from entropylong_assets.report import document_sample as module
from entropylong_assets.report.document_sample import choose_rows, sample_documents, spread, windows
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.rows import Row
from entropylong_assets.stages.corpus.shards import plan_shards, source_of
from entropylong_assets_tests.stages.corpus.files_for_tests import settings_for, write_rows


def corpus_of(folder: Path, rows: int, shard_rows: int = 10**6) -> Settings:
    texts = [f"document {i} " + "word " * 60 for i in range(rows)]
    write_rows(folder / "a.jsonl", [{"text": text} for text in texts])
    return settings_for(folder, shard_rows=shard_rows)


@pytest.mark.parametrize("scanned", [10**6, 100])
def test_chosen_rows_are_spread_over_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: int
) -> None:
    """The first 64 rows stood for all."""
    monkeypatch.setattr(module, "SCANNED_ROWS", scanned)
    corpus = corpus_of(tmp_path, 1000, shard_rows=500)
    shard = plan_shards(corpus).shards[1]
    places = []
    for seed in range(20):
        items = choose_rows(shard, source_of(shard, corpus), 16, seed)
        assert len({item.row for item in items}) == 16
        assert all(isinstance(item, Row) for item in items)
        places += [item.row for item in items]
    assert min(places) >= 500
    assert max(places) < 1000
    counts, _ = np.histogram(places, bins=4, range=(500, 1000))
    assert counts.min() > 0.15 * len(places)


def test_windows_are_within_their_parts_and_of_the_wished_length(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 1003)
    (shard,) = plan_shards(corpus).shards
    for n in (1, 5, 8, 100):
        ranges = windows(shard, n, 1)
        assert sum(stop - start for start, stop in ranges) == n
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
        assert all(0 <= start < stop <= 1003 for start, stop in ranges)


def test_sample_follows_the_rows_of_the_sources_and_is_complete_if_they_are_few(
    tmp_path: Path,
) -> None:
    corpus = corpus_of(tmp_path, 1000, shard_rows=50)
    plan = plan_shards(corpus)
    (part,) = sample_documents(corpus, plan, 100, 0)
    assert (part.rows, part.shards, part.is_complete) == (1000, 20, False)
    assert 90 <= part.chosen_rows <= 110
    assert len(part.chosen) == module.SHARDS
    assert part.weight == pytest.approx(1000 / part.chosen_rows)
    (whole,) = sample_documents(corpus, plan, 1000, 0)
    assert whole.is_complete
    assert sum(1 for _ in whole.all_documents()) == 1000


def test_documents_that_occur_twice_count_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "the same words " * 30}] * 40)
    corpus = settings_for(tmp_path)
    (part,) = sample_documents(corpus, plan_shards(corpus), 100, 0)
    assert (part.chosen_rows, sum(1 for _ in part.all_documents())) == (40, 1)


@pytest.mark.parametrize(("n", "limit"), [(0, 4), (3, 4), (4, 4), (7, 4), (100, 64), (512, 64)])
def test_spread_reaches_from_the_first_to_the_last(n: int, limit: int) -> None:
    """With a whole step, 64 of 100 were the first 64."""
    sample = spread(list(range(n)), limit)
    assert len(sample) == min(n, limit)
    assert sample == sorted(set(sample))
    edges = [-1, *sample, n]
    gaps = [b - a for a, b in itertools.pairwise(edges)]
    assert max(gaps) <= max(1, -(-n // limit))

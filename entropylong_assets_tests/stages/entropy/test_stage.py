"""The stage `entropy_scores` on a tiny corpus, against the plain definition of every figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings, SettingsError
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import load_scoring_model, score_plainly
from entropylong_assets.stages.entropy.roots import is_drawn
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES, EntropyScoresSummary
from entropylong_assets.stages.execution import Materialization, materialize
from entropylong_assets.stages.stage import Markdown, Partition
from entropylong_assets.stages.versioning import is_up_to_date, stale_reason
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.tiny_world import tiny_settings, tiny_values

SHARD = "tiny-00000"
ROOTS = {"fraction": 0.8, "min_tokens": 136, "max_tokens": 150}


@pytest.fixture(scope="module")
def settings(
    tiny_corpus: Path, tiny_models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    return tiny_settings(tiny_corpus, tmp_path_factory.mktemp("data"), tiny_models, roots=ROOTS)


@pytest.fixture(scope="module")
def partition(settings: Settings) -> Partition:
    """The partition, with its documents."""
    store = open_store(settings.corpus)
    save_plan(store, plan_shards(settings.corpus))
    materialize(CORPUS_DOCUMENTS_STAGE, Partition(settings.corpus, store, SHARD))
    return Partition(settings, open_store(settings), SHARD)


@pytest.fixture(scope="module")
def made(partition: Partition) -> Materialization:
    return materialize(ENTROPY_SCORES_STAGE, partition)


@pytest.fixture(scope="module")
def documents(partition: Partition, made: Materialization) -> pl.DataFrame:
    """Documents of the shard with drawn and n_tokens, in their order."""
    settings = partition.settings
    tokenizer = load_scoring_model(settings.scoring).tokenizer
    rows = partition.store.read(CORPUS_DOCUMENTS, SHARD, "documents", ["doc_id", "text"])
    return rows.with_columns(
        drawn=pl.Series(
            [is_drawn(d, settings.seed, settings.roots.fraction) for d in rows["doc_id"]]
        ),
        n_tokens=pl.Series([len(ids) for ids in tokenizer.encode(rows["text"].to_list())]),
    )


def summary_of(partition: Partition) -> EntropyScoresSummary:
    return partition.store.summary(ENTROPY_SCORES, SHARD)


def test_summary_counts_reconcile(partition: Partition, documents: pl.DataFrame) -> None:
    summary, drawn = summary_of(partition), documents.filter("drawn")
    assert summary.documents == len(documents) == summary.not_drawn + summary.drawn
    assert summary.drawn == len(drawn) == summary.roots + sum(summary.dropped.values())
    assert summary.not_drawn > 0
    long, short = (drawn["n_tokens"] > 150).sum(), (drawn["n_tokens"] < 136).sum()
    assert summary.dropped == {
        reason: n for reason, n in (("too_long_for_root", long), ("too_short_for_root", short)) if n
    }
    assert 0 < sum(summary.dropped.values()) < summary.drawn
    roots = partition.store.read(ENTROPY_SCORES, SHARD, "roots")
    assert summary.anchors == roots["anchors"].list.len().sum() > 0
    assert summary.forward_tokens == roots["token_ids"].list.len().sum()


def test_roots_are_the_eligible_documents_in_their_order(
    partition: Partition, documents: pl.DataFrame
) -> None:
    eligible = documents.filter("drawn", pl.col("n_tokens").is_between(136, 150))
    roots = partition.store.read(ENTROPY_SCORES, SHARD, "roots")
    assert roots["root_id"].to_list() == eligible["doc_id"].to_list()
    dropped = partition.store.read(ENTROPY_SCORES, SHARD, "dropped")
    others = documents.filter("drawn", ~pl.col("n_tokens").is_between(136, 150))
    assert dropped["root_id"].to_list() == others["doc_id"].to_list()
    assert dropped["n_tokens"].to_list() == others["n_tokens"].to_list()


def test_scores_and_anchors_equal_the_definition(
    partition: Partition, documents: pl.DataFrame
) -> None:
    model = load_scoring_model(partition.settings.scoring)
    alpha, first = 1.5, 4
    text = dict(documents.select("doc_id", "text").iter_rows())
    for row in partition.store.read(ENTROPY_SCORES, SHARD, "roots").iter_rows(named=True):
        (ids,) = model.tokenizer.encode([text[row["root_id"]]])
        assert row["token_ids"] == ids
        sequence = np.asarray([*model.tokenizer.bos_ids, *ids], np.int64)
        scores = score_plainly(
            model, ScoringRequest(sequence, np.arange(1, len(sequence), dtype=np.int64))
        )
        assert row["entropies"] == pytest.approx(scores.entropy_N.tolist(), abs=1e-4)
        assert row["surprisals"] == pytest.approx(scores.surprisal_N.tolist(), abs=1e-4)
        mean = math.fsum(row["entropies"]) / len(ids)
        std = math.sqrt(math.fsum((h - mean) ** 2 for h in row["entropies"]) / len(ids))
        assert (row["mean"], row["std"]) == pytest.approx((mean, std), rel=1e-9)
        assert row["anchors"] == [
            t for t, h in enumerate(row["entropies"]) if h > mean + alpha * std and t >= first
        ]


def test_anchors_by_surprisal_are_found_counted_and_checked(
    partition: Partition, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    entropy = {"alpha": 1.5, "min_anchor_position": 4, "anchors": "both", "min_entropy": 1.0}
    data = Path(partition.settings.data_uri)
    other = tiny_settings(tiny_corpus, data, tiny_models, roots=ROOTS, entropy=entropy)
    step = Partition(other, TableStore(other.data_uri, other.corpus.name, "surprised"), SHARD)
    materialize(ENTROPY_SCORES_STAGE, step)
    n_found = 0
    for row in step.store.read(ENTROPY_SCORES, SHARD, "roots").iter_rows(named=True):
        surprisals = row["surprisals"]
        mean = math.fsum(surprisals) / len(surprisals)
        std = math.sqrt(math.fsum((i - mean) ** 2 for i in surprisals) / len(surprisals))
        assert (row["surprisal_mean"], row["surprisal_std"]) == pytest.approx((mean, std), rel=1e-9)
        scores = list(zip(row["entropies"], surprisals, strict=True))
        alone = [
            t
            for t, (h, i) in enumerate(scores)
            if t >= 4 and i > mean + 1.5 * std and 1.0 < h <= row["threshold"]
        ]
        by_entropy = [t for t, (h, _) in enumerate(scores) if t >= 4 and h > row["threshold"]]
        assert row["by_surprisal"] == alone
        assert row["anchors"] == sorted(by_entropy + alone)
        n_found += len(alone)
    assert summary_of(step).anchors_by_surprisal == n_found > 0
    assert summary_of(step).anchors > n_found
    assert all(result.passed for result in run_checks(ENTROPY_SCORES_STAGE, step))


def test_metadata_contains_a_chart_and_the_scorer(made: Materialization) -> None:
    chart = made.metadata["entropies"]
    assert isinstance(chart, Markdown)
    assert chart.startswith("![histogram of entropies with the mean threshold](data:image/png")
    assert made.metadata["scoring"]["mode"] == "packed"  # type: ignore[index,call-overload]
    assert made.unit == "tokens"


def test_checks_pass(partition: Partition, made: Materialization) -> None:
    results = list(run_checks(ENTROPY_SCORES_STAGE, partition))
    assert {r.check.name for r in results} >= {"roots_reconcile", "roots_eligible"}
    assert [r.check.name for r in results if not r.passed] == []


@pytest.mark.parametrize(
    ("roots", "failing"),
    [
        ({"fraction": 1.0}, "roots_reconcile"),
        ({"fraction": 0.3}, "roots_reconcile"),
        ({"max_tokens": 141}, "roots_eligible"),
        ({"min_tokens": 145}, "roots_eligible"),
    ],
)
def test_checks_fail_under_another_choice_of_roots(
    partition: Partition,
    made: Materialization,
    tiny_corpus: Path,
    tiny_models: tuple[str, str],
    roots: dict[str, Any],
    failing: str,
) -> None:
    data = Path(partition.settings.data_uri)
    other = tiny_settings(tiny_corpus, data, tiny_models, roots=ROOTS | roots)
    results = list(
        run_checks(ENTROPY_SCORES_STAGE, Partition(other, partition.store, SHARD), [failing])
    )
    assert not results[0].passed
    for _ in run_checks(ENTROPY_SCORES_STAGE, partition, [failing]):
        pass  # store the outcome of the partition's own settings again


def test_partition_is_stale_under_other_roots(
    partition: Partition, made: Materialization, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    def reason(**over: Any) -> str | None:
        data = Path(partition.settings.data_uri)
        other = tiny_settings(tiny_corpus, data, tiny_models, **{"roots": ROOTS, **over})
        return stale_reason(ENTROPY_SCORES_STAGE, Partition(other, partition.store, SHARD))

    assert is_up_to_date(ENTROPY_SCORES_STAGE, partition)
    assert reason(roots=ROOTS | {"fraction_by_source": {"tiny": 0.1}}) == (
        "setting roots has changed"
    )
    assert reason(seed=1) == "setting seed has changed"
    assert reason(entropy={"alpha": 2.0}) == "setting entropy has changed"
    assert reason(scoring={"dtype": "bfloat16"}) is not None
    assert reason(scoring={"separator": "\n", "pack_tokens": 99}) is None
    assert reason(verification={"epsilon": 0.2}, retrieval={"top_k": 2}) is None


def test_roots_longer_than_the_model_are_dropped(
    tiny_corpus: Path, tiny_models: tuple[str, str], partition: Partition, documents: pl.DataFrame
) -> None:
    limit = int(documents["n_tokens"].median())  # type: ignore[arg-type]
    other = tiny_settings(
        tiny_corpus,
        Path(partition.settings.data_uri),
        tiny_models,
        roots={"fraction": 1.0, "min_tokens": 2, "max_tokens": 4000},
        scoring={"max_forward_tokens": limit + 1},  # with the BOS token
    )
    store = TableStore(other.data_uri, other.corpus.name, "another")
    step = Partition(other, store, SHARD)
    materialize(ENTROPY_SCORES_STAGE, step)
    summary = summary_of(step)
    fit = int((documents["n_tokens"] <= limit).sum())
    assert 0 < fit < len(documents)
    assert summary.roots == fit
    assert summary.dropped == {"too_long_for_model": len(documents) - fit}
    assert all(r.passed for r in run_checks(ENTROPY_SCORES_STAGE, step))


def test_fraction_of_an_unknown_source_is_refused(
    tiny_corpus: Path, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    values = tiny_values(
        tiny_corpus, tmp_path, tiny_models, roots={"fraction_by_source": {"web": 0.5}}
    )
    with pytest.raises(SettingsError, match="no source 'web' in corpus 'corpus'; there are tiny"):
        make_project(values)

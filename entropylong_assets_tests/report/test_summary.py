"""The overview of a dataset, against sums made here row by row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import pytest

from entropylong_assets.report import summary as module
from entropylong_assets.report.summary import gather
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.false_acceptance import false_acceptance
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import SHARDS, run_settings, write_run


def test_gather_matches_sums_by_hand(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    store = write_run(settings)
    overview = gather(store, settings)
    pairs = store.read_all(VERIFIED_DEPENDENCIES, SHARDS, "pairs").to_dicts()
    roots = store.read_all(ENTROPY_SCORES, SHARDS, "roots").to_dicts()
    accepted = [pair for pair in pairs if pair["accepted"]]
    assert (overview.shards, overview.roots) == (2, len(roots))
    assert overview.anchors == sum(len(root["anchors"]) for root in roots)
    assert overview.pairs == len(pairs)
    assert overview.pairs_scored == sum(pair["gain"] is not None for pair in pairs)
    assert overview.accepted_by == Counter(rule for p in pairs for rule in p["accepted_by"])
    assert overview.verdicts == Counter(pair["verdict"] for pair in pairs)
    assert overview.mean_gain == pytest.approx(fmean(pair["gain"] for pair in accepted))
    starred = fmean(pair["calibrated_gain"] for pair in accepted)
    assert overview.mean_calibrated_gain == pytest.approx(starred)
    anchors = pl.DataFrame(pairs).select("root_id", "anchor", "entropy", "surprisal").unique()
    controls = store.read_all(VERIFIED_DEPENDENCIES, SHARDS, "controls")
    assert overview.false_acceptance == false_acceptance(anchors, controls, settings.verification)
    samples = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "samples").drop("input_ids")
    owners = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "dependencies")["sample_id"].to_list()
    assert overview.n_samples == len(samples)
    segments = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "segments").to_dicts()
    tokens = Counter[str]()
    for segment in segments:
        tokens[segment["role"]] += segment["end"] - segment["start"]
    assert +Counter(overview.tokens_by_role) == tokens
    assert overview.samples.drop("dependencies").equals(samples.sort("sample_id"))
    assert overview.samples["dependencies"].to_list() == [
        owners.count(sample_id) for sample_id in samples["sample_id"].sort()
    ]


def test_gather_lists_the_first_samples_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_settings(tmp_path)
    store = write_run(settings, roots=20)
    monkeypatch.setattr(module, "LISTED_SAMPLES", 3)
    overview = gather(store, settings)
    every = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "samples", ["sample_id"])["sample_id"]
    assert overview.n_samples == len(every) > 3
    assert overview.samples["sample_id"].to_list() == every.sort().to_list()[:3]


def test_gather_reads_no_table_of_pairs_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every run the pairs of all shards were held at once."""
    settings = run_settings(tmp_path)
    store = write_run(settings)
    read: list[tuple[str, str]] = []

    def observed(self: TableStore, tables: Any, shard: str, table: str, *args: Any) -> pl.DataFrame:
        read.append((tables.name, table))
        return original(self, tables, shard, table, *args)

    original = TableStore.read
    monkeypatch.setattr(TableStore, "read", observed)
    gather(store, settings)
    assert set(read) == {(VERIFIED_DEPENDENCIES.name, "controls")}


def test_gather_of_no_shards_is_empty(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    overview = gather(write_run(settings), settings, shards=[])
    assert (overview.shards, overview.n_samples, overview.samples.is_empty()) == (0, 0, True)
    assert overview.false_acceptance == {}

"""One sample as text, read without the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from entropylong_assets.report import sample_tokens
from entropylong_assets.report.sample_tokens import read_token_ids
from entropylong_assets.report.show import show_sample
from entropylong_assets.report.text import visible
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import SHARDS, byte_tokenizer, run_settings, write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    return write_run(run_settings(tmp_path_factory.mktemp("run")), roots=12)


def test_show_sample_decodes_the_strongest_dependencies(store: TableStore) -> None:
    samples = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "samples").to_dicts()
    dependencies = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "dependencies").to_dicts()
    segments = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "segments").to_dicts()
    for sample in samples:
        shown = show_sample(store, byte_tokenizer, sample["sample_id"], strongest=2)
        own = [d for d in dependencies if d["sample_id"] == sample["sample_id"]]
        own.sort(key=lambda d: (-d["gain"], d["chunk_id"]))
        assert shown.n_dependencies == len(own)
        assert [d.chunk_id for d in shown.dependencies] == [d["chunk_id"] for d in own[:2]]
        mine = [s for s in segments if s["sample_id"] == sample["sample_id"]]
        assert shown.segments.to_dicts() == mine
        for dependency, row in zip(shown.dependencies, own, strict=False):
            ids, at = sample["input_ids"], row["anchor_position"]
            context = ids[row["context_start"] : row["context_end"]]
            assert dependency.token == visible(byte_tokenizer().decode(ids[at : at + 1]))
            assert dependency.context == visible(byte_tokenizer().decode(context))
            assert not set(dependency.context) & set("\x1b\x07\u202e\u2066")
            passage = f"{shown.shard.rpartition('-')[0]} passage"
            assert dependency.evidence == ("" if row["kind"] is None else passage[2:])
    kinds = [d["kind"] for d in dependencies]
    assert set(kinds) == {None, "verbatim_word"}, "every second one has an evidence span"


@pytest.mark.parametrize("rows_per_batch", [1, 3, 64])
def test_read_token_ids_finds_every_sample_in_every_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_batch: int
) -> None:
    monkeypatch.setattr(sample_tokens, "_ROWS_PER_BATCH", rows_per_batch)
    store, rng = TableStore(str(tmp_path)), np.random.default_rng(1)
    written: dict[str, list[int]] = {}
    with store.write(LONG_CONTEXT_SAMPLES, "web-00000", fingerprint="t") as writer:
        for group in (1, 7, 2):
            ids = [f"web-00000-{len(written) + i:05d}" for i in range(group)]
            tokens = [rng.integers(0, 99, 50).tolist() for _ in ids]
            written |= dict(zip(ids, tokens, strict=True))
            counts = dict.fromkeys(("n_root", "n_verified", "n_negative", "n_padding"), 0)
            writer.append(
                "samples",
                [
                    {"sample_id": i, "input_ids": t} | counts
                    for i, t in zip(ids, tokens, strict=True)
                ],
            )
    for sample_id, tokens in written.items():
        assert read_token_ids(store, sample_id) == tokens
    assert read_token_ids(store, "web-00000-00010") is None
    assert read_token_ids(store, "web-00001-00000") is None
    assert read_token_ids(store, "web") is None


def test_show_sample_names_existing_samples_without_reading_tokens(
    store: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: list[Any] = []
    original = TableStore.batches

    def observed(self: TableStore, *args: Any, **kwargs: Any) -> Any:
        columns.append(args[3])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TableStore, "batches", observed)
    monkeypatch.setattr(TableStore, "read", None)
    with pytest.raises(TableError) as caught:
        show_sample(store, byte_tokenizer, f"{SHARDS[1]}-99999\x1b[31m", strongest=1)
    message = str(caught.value)
    assert message.startswith(f"no sample {SHARDS[1]}-99999\\x1b[31m; there are ")
    first = f"{SHARDS[1]}-00000"
    assert message.index(first) < message.index(f"{SHARDS[0]}-00000"), "of the named shard first"
    assert message.isprintable()
    assert columns
    assert all(chosen == ["sample_id"] for chosen in columns)


def test_show_sample_of_an_empty_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no sample web-00000-00000; no sample exists yet"):
        show_sample(TableStore(str(tmp_path)), byte_tokenizer, "web-00000-00000", strongest=1)


def test_show_sample_of_a_sample_without_dependencies(store: TableStore) -> None:
    shard = SHARDS[0]
    name = f"{shard}-00000"
    tables = {
        t: store.read(LONG_CONTEXT_SAMPLES, shard, t)
        for t in ("samples", "segments", "dependencies", "dropped")
    }
    summary = store.require(LONG_CONTEXT_SAMPLES, shard).summary
    with store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="t") as writer:
        writer.summary = summary
        for table, frame in tables.items():
            writer.append(table, frame.clear() if table == "dependencies" else frame)
    try:
        shown = show_sample(store, byte_tokenizer, name, strongest=3)
    finally:
        with store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="t") as writer:
            writer.summary = summary
            for table, frame in tables.items():
                writer.append(table, frame)
    assert (shown.n_dependencies, shown.dependencies) == (0, [])
    assert isinstance(shown.segments, pl.DataFrame)
    assert len(shown.segments)

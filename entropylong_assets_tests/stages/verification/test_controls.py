"""Controls: random chunks of other documents, drawn evenly and repeatably, of equal length."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import chisquare

from entropylong_assets.stages.embeddings import chunk_sample
from entropylong_assets.stages.embeddings.chunk_sample import lowest_points
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.table import ChunkTable, open_table
from entropylong_assets.stages.retrieval.chunk_universe import ChunkUniverse, chunk_universe
from entropylong_assets.stages.verification.controls import Control, ControlSource, draw_controls
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.embeddings.test_table import World

SEPARATOR = (7, 8)
SHARDS = {"a": 5, "b": 12, "c": 3}
ROOT = "b2"
CANDIDATES = {"a1-0", "c0-0"}
NEAR_DUPLICATES = {"b4-0", "b5-0"}
NOT_INDEXED = "a3-0"
"""A chunk that is not in the index: another shard owns its document."""


def ids(shard: str) -> list[str]:
    return [f"{shard}{i}-0" for i in range(SHARDS[shard])]


ALL = [c for shard in SHARDS for c in ids(shard)]
ALLOWED = set(ALL) - CANDIDATES - NEAR_DUPLICATES - {NOT_INDEXED, f"{ROOT}-0"}
WORDS = {chunk: [100 * i + k for k in range(4 + i % 3)] for i, chunk in enumerate(ALL, 1)}
TEXTS = {chunk: " ".join(map(str, words)) for chunk, words in WORDS.items()}


def fetch(chunk_ids: Sequence[str]) -> pl.DataFrame:
    rows = [(c, c.partition("-")[0], TEXTS[c]) for c in sorted(chunk_ids) if c != NOT_INDEXED]
    schema = {"chunk_id": pl.String, "doc_id": pl.String, "text": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [[int(word) for word in text.split()] for text in texts]


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(map(str, token_ids))


def is_near_duplicate(text: str) -> bool:
    return text in {TEXTS[c] for c in NEAR_DUPLICATES}


def points(chunk_ids: Sequence[str]) -> pl.DataFrame:
    """As `ChunkSample.chunks`, by another library."""
    found = [int(hashlib.md5(c.encode()).hexdigest()[:16], 16) for c in chunk_ids]
    schema = {"chunk_id": pl.String, "point": pl.UInt64}
    return pl.DataFrame({"chunk_id": chunk_ids, "point": found}, schema=schema)


UNIVERSE = ChunkUniverse(points(ALL))


def source(universe: ChunkUniverse = UNIVERSE, seed: int = 1) -> ControlSource:
    tokenizer: Any = SimpleNamespace(encode=encode, decode=decode, separator_ids=SEPARATOR)
    return ControlSource(universe, fetch, tokenizer, seed)


def draw(length: int = 6, count: int = 2, seed: int = 1, root: str = ROOT) -> list[Control]:
    return draw_controls(source(seed=seed), root, CANDIDATES, is_near_duplicate, length, count)


def test_every_chunk_is_equally_likely() -> None:
    drawn = Counter(UNIVERSE.draw(0, f"root{i}", i % 3, 0) for i in range(6000))
    assert set(drawn) == set(ALL)
    assert chisquare([drawn[c] for c in ALL]).pvalue > 0.001


def test_every_allowed_chunk_begins_a_control_equally_often() -> None:
    first: Counter[str] = Counter()
    for seed in range(1500):
        for control in draw(seed=seed):
            first[control.chunk_ids[0]] += 1
    assert set(first) == ALLOWED
    assert chisquare([first[c] for c in sorted(ALLOWED)]).pvalue > 0.001


def test_controls_contain_no_excluded_chunk() -> None:
    seen: set[str] = set()
    for seed in range(300):
        for control in draw(length=20, seed=seed):
            assert set(control.chunk_ids) <= ALLOWED
            assert len(set(control.chunk_ids)) == len(control.chunk_ids)
            seen |= set(control.chunk_ids)
    assert seen == ALLOWED


@pytest.mark.parametrize("length", [3, 6, 7, 15, 40])
def test_controls_have_the_exact_length_and_consist_of_their_chunks(length: int) -> None:
    for seed in range(50):
        controls = draw(length=length, count=3, seed=seed)
        assert [c.number for c in controls] == [0, 1, 2]
        for control in controls:
            assert len(control.token_ids) == length
            assert control.token_ids[-2:] == SEPARATOR
            whole = [t for c in control.chunk_ids for t in (*WORDS[c], *SEPARATOR)]
            assert list(control.token_ids[:-2]) == whole[: length - 2]
            assert control.text == decode(whole[: length - 2])
            # The last chunk was needed.
            last = len(WORDS[control.chunk_ids[-1]]) + 2
            assert len(whole) - last < length - 2


def test_the_controls_of_a_root_are_read_in_one_request() -> None:
    """One per control would be 25 ms each in object storage."""
    requests: list[int] = []

    def counted(chunk_ids: Sequence[str]) -> pl.DataFrame:
        requests.append(len(chunk_ids))
        return fetch(chunk_ids)

    drawn = draw_controls(replace(source(), fetch=counted), ROOT, CANDIDATES, lambda _: False, 5, 8)
    assert drawn == draw_controls(source(), ROOT, CANDIDATES, lambda _: False, 5, 8)
    assert len(drawn) == 8
    assert requests[0] >= 8
    assert len(requests) <= 3, "only a control without a chunk among its first draws needs more"


def test_the_same_seed_draws_the_same_controls_and_another_seed_others() -> None:
    assert draw() == draw()
    assert draw(count=1) == draw(count=2)[:1], "a control depends on how many there are"
    assert draw() != draw(seed=2)
    assert draw() != draw(root="b3")
    assert len({c.token_ids for c in draw(count=6, length=30)}) == 6


def test_a_corpus_without_other_documents_gives_no_controls() -> None:
    for universe in (ChunkUniverse(points([f"{ROOT}-0"])), ChunkUniverse(points([]))):
        controls = draw_controls(source(universe), ROOT, CANDIDATES, is_near_duplicate, 6, 2)
        assert controls == []


def test_a_small_corpus_gives_shorter_controls() -> None:
    one = ChunkUniverse(points(["c1-0"]))
    (control,) = draw_controls(source(one), ROOT, set(), is_near_duplicate, 99, 1)
    assert control.chunk_ids == ("c1-0",)
    assert list(control.token_ids[:-2])[: len(WORDS["c1-0"])] == WORDS["c1-0"]
    assert len(control.token_ids) < 99


def test_controls_come_from_the_version_of_the_candidates(tmp_path: Path) -> None:
    """A shard written between retrieval and verification must change no verdict; nor must the
    order in which shards were written, nor a shard that is in the table but not indexed."""
    drawn = []
    for number, order in enumerate((["s-0", "s-1", "half"], ["half", "s-1", "s-0"])):
        table = ChunkTable(str(tmp_path / str(number)), 2, "e")
        for shard in order:
            write_chunks(table, shard)
        table.tag("now")
        write_chunks(table, "later")
        table.checkout("now")
        universe = chunk_universe(table, ["half"])
        assert universe.total == 6
        drawn.append([universe.draw(0, f"r{i}", 0, 0) for i in range(1800)])
    assert drawn[0] == drawn[1]
    counts = Counter(drawn[0])
    assert set(counts) == {f"{shard}-{i}" for shard in ("s-0", "s-1") for i in range(3)}
    assert chisquare(list(counts.values())).pvalue > 0.001


def draws(universe: ChunkUniverse, n: int = 400) -> list[str]:
    return [universe.draw(3, f"r{i}", i % 2, 0) for i in range(n)]


@pytest.mark.parametrize("n_chunks", [7, 60, 5000])
def test_every_chunk_is_equally_likely_in_buckets_of_any_size(n_chunks: int) -> None:
    """A chunk after a wide gap between points, or in a small bucket, must be no likelier."""
    universe = ChunkUniverse(points([f"d{i}-{i % 3}" for i in range(n_chunks)]))
    n = max(2000, 8 * n_chunks)
    counts = Counter(universe.draw(i % 5, f"root{i}", 0, 0) for i in range(n))
    found = [counts[c] for c in universe._ids]
    assert sum(found) == n
    assert 0.001 < chisquare(found).pvalue < 0.999


def test_draws_depend_on_the_chunks_alone() -> None:
    chunks = points([f"d{i}-0" for i in range(3000)])
    wanted = draws(ChunkUniverse(chunks))
    assert len(set(wanted)) > 300
    assert draws(ChunkUniverse(chunks.sample(fraction=1.0, shuffle=True, seed=1))) == wanted


@pytest.mark.parametrize("n_chunks", [300, 3000, 40_000])
def test_a_draw_stays_if_its_chunk_stays(n_chunks: int) -> None:
    """A quarter of the documents is removed; draws by position would nearly all change."""
    ids = [f"d{i // 3}-{i % 3}" for i in range(n_chunks)]
    rest = [c for c in ids if int(c[1:].partition("-")[0]) % 4]
    before, after = draws(ChunkUniverse(points(ids))), draws(ChunkUniverse(points(rest)))
    kept = [(a, b) for a, b in zip(before, after, strict=True) if a in set(rest)]
    assert 0.65 < len(kept) / len(before) < 0.85
    assert sum(a == b for a, b in kept) / len(kept) > 0.9
    assert all(b in set(rest) for b in after)


@pytest.mark.parametrize("rows_per_batch", [64, 100_000])
def test_a_large_corpus_is_sampled_by_lowest_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_batch: int
) -> None:
    """The sample is bounded, and grows old slowly: it does not depend on shards or their order, nor
    on how many ids are read at a time."""
    monkeypatch.setattr(chunk_sample, "_ROWS_PER_BATCH", rows_per_batch)
    store = TableStore(str(tmp_path), "c")
    rows = [(f"d{i}-0", f"s{i % 7}") for i in range(5000)]
    schema = {"chunk_id": pl.String, "shard": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    sample = lowest_points(store, lambda: frame, ["s3"], limit=200)
    allowed = points([c for c, shard in rows if shard != "s3"]).sort("point")
    assert sample.equals(allowed.head(200))
    recut = frame.with_columns(shard=pl.lit("t")).reverse()
    recut = recut.filter(pl.col("chunk_id").is_in(allowed["chunk_id"].to_list()))
    assert lowest_points(store, lambda: recut, [], limit=200).equals(sample)
    twice = pl.concat([recut, recut.with_columns(shard=pl.lit("u"))])
    every = lowest_points(store, lambda: twice, [], limit=20_000)
    assert every.equals(allowed), "a chunk that two shards hold is drawn as one"
    larger = points([*allowed["chunk_id"], *(f"e{i}-0" for i in range(43))]).sort("point")
    common = set(larger.head(200)["chunk_id"]) & set(sample["chunk_id"])
    assert len(common) > 190, "1% more chunks replace about 1% of the sample"


def test_the_stored_sample_gives_the_same_draws_as_reading_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against reading a column of the whole table per shard: 250 s for 10^9 rows on a GPU
    node. One shard has no rows because others own its documents, and one is not indexed."""
    world = World(tmp_path)
    world.embed("s-1", [f"a{i}" for i in range(7)], 1)
    world.embed("s-0", ["b0", "b1", "a1", "a2"], 2, chunks_per_doc=3)
    world.embed("copies", ["a3", "a4"], 3)
    world.embed("half", ["h0", "h1"], 4)
    first = world.index({"s-1": 0, "s-0": 1, "copies": 2})
    assert first.excluded_shards == ["half"]
    table = open_table(world.store, "t")
    table.tag("first")
    # The table now has another content than the tagged version.
    world.embed("later", ["l0"], 5)
    rows = pl.concat(table.scan(["shard", "chunk_id"])).filter(pl.col("shard") != "half")
    wanted = draws(ChunkUniverse(points(rows["chunk_id"].to_list())))
    read: list[list[str]] = []
    reader = ChunkTable.reader

    def watched(self: ChunkTable, columns: list[str], shard: str | None = None) -> Any:
        read.append(columns)
        return reader(self, columns, shard)

    monkeypatch.setattr(ChunkTable, "reader", watched)
    universe = chunk_universe(table, ["half"])
    assert universe.total == len(rows) == 13
    assert draws(universe) == wanted
    assert read == []
    assert len(set(wanted)) == 13
    # Other shards were left out when the candidates were searched: the stored sample is not theirs.
    without = chunk_universe(table, ["half", "s-0"])
    assert without.total == len(rows.filter(pl.col("shard") != "s-0"))
    assert set(draws(without)) <= set(rows.filter(pl.col("shard") != "s-0")["chunk_id"])
    # The index is of another version than the candidates.
    world.embed("s-0", ["b0"], 6)
    later = world.index({"s-1": 0, "s-0": 1, "copies": 2, "later": 3})
    assert later.n_rows != first.n_rows
    read.clear()
    old = chunk_universe(open_table(world.store, "first"), ["half"])
    assert (draws(old), old.total) == (wanted, 13)
    assert read != []
    newest = open_table(world.store, "t")
    assert draws(chunk_universe(newest, later.excluded_shards)) != wanted


def write_chunks(table: ChunkTable, shard: str) -> None:
    rows = [
        {"chunk_id": f"{shard}-{i}", "doc_id": shard, "shard": shard, "source": "s", "start": 0,
         "end": 1, "text": "t", "vector": [1.0, 0.0]}
        for i in range(3)
    ]  # fmt: skip
    table.replace_shard(shard, [pa.RecordBatch.from_pylist(rows, chunk_schema(2, "e"))])

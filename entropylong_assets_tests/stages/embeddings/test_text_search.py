"""Full-text search in a real LanceDB table, held against the formula of BM25."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from entropylong_assets.stages.embeddings.table import ChunkTable, open_table
from entropylong_assets.stages.embeddings.vector_table import FOUND_BY_TEXT
from entropylong_assets.storage.manifest import TableError
from entropylong_assets_tests.bm25 import bm25
from entropylong_assets_tests.stages.embeddings.test_table import (
    World,
    batch,
    new_table,
    store_in,
    unit_vectors,
)
from entropylong_assets_tests.tiny_world import document

QUERIES = ["river stone river", "Copper", "lantern, granite; willow!", "violet nothing-else"]


def rows(shard: str, texts: dict[str, str], seed: int = 1) -> pa.RecordBatch:
    """Rows of one chunk per document, by doc_id, with these texts."""
    made = batch(shard, list(texts), unit_vectors(len(texts), seed))
    at = made.schema.get_field_index("text")
    return made.set_column(at, made.schema.field(at), pa.array(texts.values(), pa.large_string()))


def shards() -> dict[str, dict[str, str]]:
    """Two shards of 40 documents."""
    return {
        shard: {f"{shard}{i:02d}": document(100 * n + i, 3) for i in range(40)}
        for n, shard in enumerate("ab")
    }


def words_of(texts: dict[str, str]) -> dict[str, list[str]]:
    return {f"{doc}-00000": re.findall("[a-z]+", text.lower()) for doc, text in texts.items()}


def searchable(folder: Path, texts: dict[str, dict[str, str]]) -> ChunkTable:
    table = new_table(folder)
    for shard, of_shard in texts.items():
        table.replace_shard(shard, [rows(shard, of_shard)])
    table.build_text_index()
    return table


def scores(table: ChunkTable, query: str, limit: int = 500, *excluded: str) -> dict[str, float]:
    found = table.search_text([query], limit, excluded)
    return dict(found.select("chunk_id", "score").iter_rows())


def test_scores_are_those_of_bm25(tmp_path: Path) -> None:
    texts = shards()
    table = searchable(tmp_path, texts)
    words = words_of({**texts["a"], **texts["b"]})
    found = table.search_text(QUERIES, 500)
    assert found.schema == FOUND_BY_TEXT
    for number, query in enumerate(QUERIES):
        expected = bm25(re.findall("[a-z]+", query.lower()), words)
        mine = found.filter(query=number)
        assert dict(mine.select("chunk_id", "score").iter_rows()) == pytest.approx(
            expected, abs=1e-3
        )
        assert 0 < len(expected) < 80
        best = sorted(expected.values(), reverse=True)[:5]
        five = table.search_text([query], 5)
        assert sorted(five["score"], reverse=True) == pytest.approx(best, abs=1e-3)
    assert set(found["shard"]) == {"a", "b"}
    assert (found["chunk_id"] == found["doc_id"] + "-00000").all()


def test_excluded_shards_are_not_found(tmp_path: Path) -> None:
    table = searchable(tmp_path, shards())
    everywhere = scores(table, QUERIES[0])
    without = scores(table, QUERIES[0], 500, "b")
    assert without == {chunk: s for chunk, s in everywhere.items() if chunk.startswith("a")}
    assert 0 < len(without) < len(everywhere)


def test_scores_do_not_depend_on_what_was_written_before(tmp_path: Path) -> None:
    """Rows that were replaced would still count in how rare a word is."""
    texts = shards()
    one = searchable(tmp_path / "one", texts)
    other = searchable(tmp_path / "other", {"b": {"x": "river " * 50, "y": "copper"}})
    for shard in "ba":
        other.replace_shard(shard, [rows(shard, texts[shard], 2)])
    other.build_text_index()
    for query in QUERIES:
        assert scores(other, query) == scores(one, query)


def test_a_tagged_version_keeps_its_words(tmp_path: Path) -> None:
    table = searchable(tmp_path, shards())
    before = {query: scores(table, query) for query in QUERIES}
    table.tag("index-1")
    table.drop_text_index()
    with pytest.raises(TableError, match=r"set embedding\.text_index: true and materialize"):
        table.search_text(["river"], 5)
    table.replace_shard("a", [rows("a", {"new": "river copper"})])
    table.optimize()
    table.build_text_index()
    assert scores(table, QUERIES[0]) != before[QUERIES[0]]
    tagged = open_table(store_in(tmp_path), "index-1")
    assert {query: scores(tagged, query) for query in QUERIES} == before


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("北京大学", {"zh"}),
        ("東京", {"ja"}),
        ("ยินดี", {"th"}),
        ("CAFÉ", {"fr"}),
        ("cafe", {"fr"}),
        ("norm", {"code"}),
        ("snake", {"code"}),
        ("река", {"ru"}),
        ('"river" AND (zh OR *', {"en"}),
        ("runs", {"en"}),
        ("the", {"en"}),
        ("run", set()),
        ("w" * 39, {"39 letters"}),
        ("w" * 40, set()),
        ("ж" * 19, {"38 bytes"}),
        ("ж" * 20, set()),
        ("", set()),
        ("?! --", set()),
    ],
)
def test_words_of_any_script_are_found(
    tmp_path_factory: pytest.TempPathFactory, query: str, found: set[str]
) -> None:
    texts = {
        "zh": "今天下雨了，我们去北京大学。",
        "ja": "東京に行きました。",
        "th": "สวัสดีครับ ยินดีต้อนรับ",
        "fr": "Un café s'il vous plaît",
        "code": "np.linalg.norm(snake_case)",
        "ru": "Москва-река",
        "en": "The river runs.",
        "39 letters": "w" * 39,
        "40 letters": "w" * 40,
        "38 bytes": "ж" * 19,
        "40 bytes": "ж" * 20,
    }
    table = searchable(tmp_path_factory.mktemp("scripts"), {"s": texts})
    assert set(table.search_text([query], 9)["doc_id"]) == found


def test_the_setting_decides_whether_words_are_indexed(tmp_path: Path) -> None:
    """Turning it off again drops the index, which every new row would be added to."""
    for wanted in (False, True, False):
        world = World(tmp_path, text_index=wanted)
        world.embed("a", ["d1", "d2"], 1)
        summary = world.index({"a": 0})
        assert summary.text_index is wanted
        tagged = open_table(world.store, summary.tag)
        assert ("text" in tagged.indexed_columns()) is wanted
        if wanted:
            assert set(scores(tagged, "d2")) == {"d2-00000"}

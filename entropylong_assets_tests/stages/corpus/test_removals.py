"""Retired shards and sources leave the plan, and come back under their old keys and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.shards import (
    current_shard,
    load_plan,
    replan,
    require_shards,
    save_plan,
)
from entropylong_assets.storage.removals import (
    delete_removal,
    find_removed,
    read_removals,
    record_removal,
)
from entropylong_assets.storage.tables import TableStore


def corpus_of(tmp_path: Path, **values: Any) -> Settings:
    sources = [{"name": name, "uri": str(tmp_path / name)} for name in ("in", "more")]
    return make_project(
        {"data_uri": str(tmp_path / "data"), "corpus": {"sources": sources, **values}}
    ).corpus


def write_rows(path: Path, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"text": "row {i} of {path.name}"}}\n' for i in range(rows)))


@pytest.fixture
def corpus(tmp_path: Path) -> Settings:
    for name in ("in/a", "in/b", "more/c"):
        write_rows(tmp_path / f"{name}.jsonl", 6)
    return corpus_of(tmp_path, shard_rows=3)


def rescan(corpus: Settings, **how: Any) -> list[str]:
    """Scan and save; the keys of the active shards."""
    store = open_store(corpus)
    plan = replan(corpus, load_plan(store), **how)
    save_plan(store, plan)
    return [shard.key for shard in load_plan(store).shards]


def test_a_retired_shard_leaves_the_plan_and_its_key_and_place_are_kept(
    corpus: Settings, tmp_path: Path
) -> None:
    store = open_store(corpus)
    before = rescan(corpus)
    assert before == [f"in-0000{i}" for i in range(4)] + ["more-00000", "more-00001"]
    record_removal(store, "shard", "in-00003", "wrong", by="me")
    write_rows(tmp_path / "in/d.jsonl", 1)
    # Without its place, the new file would get the key in-00003, and b.jsonl a shard again.
    assert rescan(corpus) == [*before[:3], *before[4:], "in-00004"]
    assert [shard.position for shard in load_plan(store).shards] == [0, 1, 2, 4, 5, 6]
    with pytest.raises(CorpusError, match=r"^shard in-00003: it is retired; bring it back with"):
        load_plan(store).shard("in-00003")
    delete_removal(store, "shard", "in-00003")
    assert rescan(corpus) == [*before, "in-00004"]


def test_a_retired_source_is_not_scanned(corpus: Settings, tmp_path: Path) -> None:
    store = open_store(corpus)
    before = rescan(corpus)
    record_removal(store, "source", "more", "licence")
    write_rows(tmp_path / "more/new.jsonl", 1)
    assert rescan(corpus) == before[:4]
    delete_removal(store, "source", "more")
    assert rescan(corpus) == [*before, "more-00002"]


def test_neighbours_do_not_take_the_rows_of_a_retired_shard(
    corpus: Settings, tmp_path: Path
) -> None:
    """A changed file is cut again between the first rows of its shards, retired ones included."""
    store = open_store(corpus)
    rescan(corpus)
    record_removal(store, "shard", "in-00001", "wrong")
    write_rows(tmp_path / "in/a.jsonl", 8)
    plan = load_plan(store)
    assert current_shard(corpus, plan, "in-00000").n_rows == 3
    rescan(corpus, accept_changes=True)
    rows = {s.key: (s.first_row, s.n_rows) for s in load_plan(store).shards if "a.js" in s.files[0]}
    assert rows == {"in-00000": (0, 3), "in-00004": (6, 2)}


def test_a_corpus_of_retired_shards_is_told_plainly(corpus: Settings) -> None:
    store = open_store(corpus)
    rescan(corpus)
    for source in ("in", "more"):
        record_removal(store, "source", source, "all")
    with pytest.raises(CorpusError, match=r"all of its 6 shards are retired; bring some back with"):
        require_shards(corpus, load_plan(store))


def test_records_say_who_when_and_why(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path), "web")
    assert find_removed(store) == (frozenset(), frozenset(), {})
    first = record_removal(store, "shard", "in-00001", "copyright", by="ana")
    again = record_removal(store, "shard", "in-00001", "another reason", by="bob")
    assert again == first  # the first record stays
    assert (first.reason, first.by, first.at[:2]) == ("copyright", "ana", "20")
    assert read_removals(store) == [first]
    assert (tmp_path / "web/removed/shards/in-00001.json").is_file()
    assert find_removed(store).hides("in-00001")
    assert not find_removed(store).hides("in-00002")
    # A record that can't be read still removes its shard.
    (tmp_path / "web/removed/shards/in-00001.json").write_text("{")
    assert find_removed(store).hides("in-00001")
    assert "damaged" in read_removals(store)[0].reason

"""The plan of shards only grows; changed and missing files are listed; rows are in one shard."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.rows import Row
from entropylong_assets.stages.corpus.settings import CorpusSettings, SourceSettings
from entropylong_assets.stages.corpus.shards import (
    ShardPlan,
    current_shard,
    load_plan,
    plan_shards,
    read_shard,
    save_plan,
    source_of,
)
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import settings_for, write_rows


def lines(path: Path, *texts: str) -> Path:
    """A JSONL file of these texts, whose version differs from any before it."""
    write_rows(path, [{"text": text} for text in texts])
    lines.clock += 1  # type: ignore[attr-defined]
    os.utime(path, (lines.clock, lines.clock))  # type: ignore[attr-defined]
    return path


lines.clock = 1_700_000_000  # type: ignore[attr-defined]


def texts_of(plan: ShardPlan, corpus: CorpusSettings) -> dict[str, list[str]]:
    return {
        shard.key: [
            item.text
            for item in read_shard(shard, source_of(shard, corpus))
            if isinstance(item, Row)
        ]
        for shard in plan.shards
    }


def ranges(plan: ShardPlan) -> list[tuple[str, str, int, int]]:
    return [(s.key, Path(s.files[0]).name, s.first_row, s.n_rows) for s in plan.shards]


def test_later_files_never_take_an_earlier_key_or_position(tmp_path: Path) -> None:
    lines(tmp_path / "m.jsonl", "1", "2", "3")
    corpus = settings_for(tmp_path / "*", shard_rows=2)
    first = plan_shards(corpus)
    assert ranges(first) == [("s-00000", "m.jsonl", 0, 2), ("s-00001", "m.jsonl", 2, 1)]
    assert first.new == ("s-00000", "s-00001")
    lines(tmp_path / "a.jsonl", "4")  # sorts before
    lines(tmp_path / "z.jsonl", "5")
    second = plan_shards(corpus, first.shards)
    assert second.shards[:2] == first.shards
    assert ranges(second)[2:] == [("s-00002", "a.jsonl", 0, 1), ("s-00003", "z.jsonl", 0, 1)]
    assert [s.position for s in second.shards] == [0, 1, 2, 3]
    assert second.new == ("s-00002", "s-00003")
    third = plan_shards(corpus, second.shards)
    assert (third.shards, third.new, third.changed, third.missing) == (second.shards, (), (), ())


def test_sources_number_their_shards_apart_and_share_the_positions(tmp_path: Path) -> None:
    lines(tmp_path / "a/1.jsonl", "1")
    lines(tmp_path / "b/1.jsonl", "1")
    both = CorpusSettings(
        name="c", sources=tuple(SourceSettings(name=n, uri=str(tmp_path / n)) for n in ("b", "a"))
    )
    plan = plan_shards(both)
    assert [(s.key, s.position) for s in plan.shards] == [("b-00000", 0), ("a-00000", 1)]
    lines(tmp_path / "b/0.jsonl", "1")
    plan = plan_shards(both, plan.shards)
    assert [(s.key, s.position) for s in plan.shards][2:] == [("b-00001", 2)]
    # A source that leaves the settings: its shards stay, its files are named as missing.
    only = both.model_copy(update={"sources": both.sources[:1]})
    left = plan_shards(only, plan.shards)
    assert left.shards == plan.shards
    assert left.missing == (str(tmp_path / "a/1.jsonl"),)
    with pytest.raises(CorpusError, match="the settings have no source 'a'"):
        source_of(plan.shard("a-00000"), only)
    with pytest.raises(CorpusError, match="shard x-1: no shard of the corpus has this"):
        plan.shard("x-1")


def test_changed_and_missing_files_are_named_and_their_shards_stay(tmp_path: Path) -> None:
    a, b = lines(tmp_path / "a.jsonl", "1", "2"), lines(tmp_path / "b.jsonl", "3")
    corpus = settings_for(tmp_path)
    plan = plan_shards(corpus)
    lines(a, "1", "2", "new")
    b.unlink()
    scan = plan_shards(corpus, plan.shards)
    assert scan.shards == plan.shards
    assert (scan.changed, scan.missing, scan.new) == ((str(a),), (str(b),), ())
    assert scan.stale() == ("s-00000",)
    with pytest.raises(CorpusError, match=r"shard s-00001: .*b.jsonl does not exist; put it back"):
        current_shard(corpus, scan, "s-00001")
    with pytest.raises(CorpusError, match=r"b.jsonl: the file does not exist; put it back"):
        list(read_shard(scan.shards[1], corpus.sources[0]))
    a.unlink()
    all_missing = plan_shards(corpus, plan.shards)  # known files missing: named, no error
    assert len(all_missing.missing) == 2


def test_a_repaired_file_is_read_as_it_is_under_its_old_keys(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", *"12345")
    corpus = settings_for(tmp_path, shard_rows=2)
    plan = plan_shards(corpus)
    assert [n for *_, n in ranges(plan)] == [2, 2, 1]
    lines(a, *"abcdefgh")
    # Without a scan: a rerun of one shard reads the present rows of its range; the last grows.
    assert [current_shard(corpus, plan, key).n_rows for key in plan.new] == [2, 2, 2]
    grown = plan_shards(corpus, plan.shards, accept_changes=True)
    assert grown.changed == (str(a),)
    assert grown.new == ("s-00003",)
    assert texts_of(grown, corpus) == {
        "s-00000": ["a", "b"],
        "s-00001": ["c", "d"],
        "s-00002": ["e", "f"],
        "s-00003": ["g", "h"],
    }
    assert plan_shards(corpus, grown.shards).changed == ()
    lines(a, *"xyz")
    shrunk = plan_shards(corpus, grown.shards, accept_changes=True)
    assert list(texts_of(shrunk, corpus).values()) == [["x", "y"], ["z"], [], []]
    lines(a, *"12345678")
    healed = plan_shards(corpus, shrunk.shards, accept_changes=True)
    assert [(s.first_row, s.n_rows) for s in healed.shards] == [(0, 2), (2, 2), (4, 2), (6, 2)]


def test_text_files_that_change_or_go(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
    corpus = settings_for(tmp_path, shard_rows=3)
    plan = plan_shards(corpus)
    assert [len(s.files) for s in plan.shards] == [3, 1]
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").write_text("changed")
    (tmp_path / "d.txt").unlink()
    (tmp_path / "0.txt").write_text("new")
    scan = plan_shards(corpus, plan.shards)
    assert [Path(uri).name for uri in scan.changed] == ["c.txt"]
    assert sorted(Path(uri).name for uri in scan.missing) == ["b.txt", "d.txt"]
    assert scan.new == ("s-00002",)
    assert current_shard(corpus, scan, "s-00000").n_rows == 2
    accepted = plan_shards(corpus, plan.shards, accept_changes=True)
    readable = accepted.model_copy(update={"shards": (accepted.shards[0], accepted.shards[2])})
    assert texts_of(readable, corpus) == {"s-00000": ["a", "changed"], "s-00002": ["new"]}
    # All files of this shard are missing: reading it is an error, not an empty shard.
    with pytest.raises(CorpusError, match=r"d.txt: the file does not exist"):
        list(read_shard(current_shard(corpus, accepted, "s-00001"), corpus.sources[0]))


STEP = st.tuples(st.sampled_from("abcde"), st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=10), shard_rows=st.integers(1, 4))
def test_whatever_files_do_every_row_is_in_one_shard(
    steps: list[tuple[str, int]], shard_rows: int
) -> None:
    """Files are added, grow, shrink and change in any order; keys and positions do not change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = settings_for(folder, shard_rows=shard_rows)
        plan, held = ShardPlan(), {}
        for file, n_rows in steps:
            held[file] = [f"{file}{len(held)}-{i}" for i in range(n_rows)]
            lines(folder / f"{file}.jsonl", *held[file])
            before = plan
            plan = plan_shards(corpus, before.shards, accept_changes=True)
            kept = [(s.key, s.position, s.files, s.first_row) for s in before.shards]
            assert [(s.key, s.position, s.files, s.first_row) for s in plan.shards][
                : len(kept)
            ] == kept
            assert len({s.key for s in plan.shards}) == len(plan.shards)
            assert [s.position for s in plan.shards] == list(range(len(plan.shards)))
            assert all(s.n_rows <= shard_rows for s in plan.shards)
            read = sorted(text for texts in texts_of(plan, corpus).values() for text in texts)
            assert read == sorted(text for texts in held.values() for text in texts)


def test_a_scan_can_be_bounded_and_ends_at_the_same_plan(tmp_path: Path) -> None:
    for i in range(7):
        lines(tmp_path / f"{i}.jsonl", *"abc")
    corpus = settings_for(tmp_path, shard_rows=2)
    whole = plan_shards(corpus)
    plan = ShardPlan()
    for _ in range(4):
        plan = plan_shards(corpus, plan.shards, max_new_files=2)
    # Shards are registered in batches, each of which knows the rows so far.
    assert [shard.corpus_rows for shard in plan.shards[::2]] == [6, 6, 12, 12, 18, 18, 21]
    assert [shard.model_copy(update={"corpus_rows": 21}) for shard in plan.shards] == list(
        whole.shards
    )
    assert len(whole.shards) == 14


def test_the_plan_is_saved_whole_and_only_grows(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path / "data"))
    assert load_plan(store) == ShardPlan()
    lines(tmp_path / "in/a.jsonl", "1")
    corpus = settings_for(tmp_path / "in")
    plan = plan_shards(corpus)
    save_plan(store, plan)
    assert load_plan(store).shards == plan.shards
    assert load_plan(TableStore(store.uri, "another")) == ShardPlan()
    # Two scans at once: both start from `plan`, the second to save is refused.
    lines(tmp_path / "in/b.jsonl", "2")
    one = plan_shards(corpus, plan.shards)
    (tmp_path / "in/b.jsonl").rename(tmp_path / "in/c.jsonl")
    two = plan_shards(corpus, plan.shards)
    save_plan(store, one)
    save_plan(store, one)
    for other in (two, plan):
        with pytest.raises(CorpusError, match=r"shards.json: another scan has .* scan again"):
            save_plan(store, other)
    assert load_plan(store).shards == one.shards


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": 1, "shards": [{}]}'])
def test_a_broken_plan_is_no_empty_plan(tmp_path: Path, content: bytes) -> None:
    """Taken for an empty plan, it would let every shard be registered under another's key."""
    store = TableStore(str(tmp_path), "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/shards.json").write_bytes(content)
    with pytest.raises(
        CorpusError, match=r"shards.json: not a plan of shards in format 1; restore"
    ):
        load_plan(store)


def test_source_names_go_into_keys_as_they_are(tmp_path: Path) -> None:
    """A name that could leave a folder is refused by the settings."""
    for name in ("../x", "a/b", ".a", "A", "a" * 64):
        with pytest.raises(ValueError, match="name"):
            SourceSettings(name=name, uri="x")
    lines(tmp_path / "a.jsonl", "1")
    values: dict[str, Any] = {"uri": str(tmp_path)}
    names = ("web-00000", "web", "web-00000-00000")
    sources = tuple(SourceSettings(name=name, **values) for name in names)
    plan = plan_shards(CorpusSettings(name="c", sources=sources))
    assert len({shard.key for shard in plan.shards}) == 3


def test_a_thousand_known_shards_are_looked_over_in_seconds(tmp_path: Path) -> None:
    for i in range(1000):
        lines(tmp_path / f"in/{i}.jsonl", "a")
    corpus = settings_for(tmp_path / "in")
    store = TableStore(str(tmp_path / "data"))
    save_plan(store, plan_shards(corpus))
    start = time.perf_counter()
    scan = plan_shards(corpus, load_plan(store).shards)
    assert (len(scan.shards), scan.new) == (1000, ())
    assert time.perf_counter() - start < 3


def test_later_shards_leave_the_rows_of_earlier_ones_as_they_were(tmp_path: Path) -> None:
    """The draw of roots depends on them, so a change would make all earlier shards stale."""
    corpus = settings_for(tmp_path, shard_rows=4)
    lines(tmp_path / "a.jsonl", *"abcdefghij")
    first = plan_shards(corpus)
    assert [first.corpus_rows(shard.key) for shard in first.shards] == [10, 10, 10]
    lines(tmp_path / "b.jsonl", *"abcde")
    second = plan_shards(corpus, first.shards)
    assert [second.corpus_rows(shard.key) for shard in second.shards] == [10, 10, 10, 15, 15]
    assert second.shards[:3] == first.shards
    old = [shard.model_copy(update={"corpus_rows": 0}) for shard in first.shards]
    third = plan_shards(corpus, old)
    assert [third.corpus_rows(shard.key) for shard in third.shards] == [10, 10, 10, 15, 15]

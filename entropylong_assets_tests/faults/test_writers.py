"""Two processes that materialise the same shard, or two shards, at once, each under a Dagster
instance of its own, so that no pool holds one back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from entropylong_assets.orchestration.errors import is_transient
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.faults.comparing import rerun
from entropylong_assets_tests.faults.processes import Stage, witnessed
from entropylong_assets_tests.faults.reference import FIRST, STAGES, Reference, shard_of
from entropylong_assets_tests.faults.summary import Tale


def write_at_once(
    reference: Reference, stage: str, pairs: list[tuple[str, str]], where: Path, tell: Tale
) -> None:
    """Stages and shards that go on at the same time; then the first of them once more."""
    reference.make(stage)
    data = where / "data"
    reference.copy(stage, data, where / "home")
    with witnessed(data, reference.versions(stage), reference.rows(stage)) as seen:
        going = []
        for number, (asset, shard) in enumerate(pairs):
            home = Path(shutil.copytree(where / "home", where / f"home-{number}"))
            going.append(Stage(reference.values(data), home, asset, shard, pauses=False))
        for one in going:
            one.finish()
        assert going[-1].began < going[0].ended, "they were not at it at the same time"
        rerun(reference, stage, data, where / "home", tell)
    tell.looks, tell.whole_seen = seen["looks"], seen.get("whole", 0)
    tell.differences += [f"seen: {fault}" for fault in seen["faults"]]
    assert tell.differences == []


def test_one_shard_by_two_processes_in_short(
    reference: Reference, tmp_path: Path, tell: Tale
) -> None:
    stage = "chunk_embeddings"
    write_at_once(reference, stage, [(stage, shard_of(stage))] * 2, tmp_path, tell)
    tell.faults["two processes on one shard"] += 1


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_one_shard_by_two_processes(
    reference: Reference, stage: str, tmp_path: Path, tell: Tale
) -> None:
    write_at_once(reference, stage, [(stage, shard_of(stage))] * 2, tmp_path, tell)
    tell.faults["two processes on one shard"] += 1


@pytest.mark.long
@pytest.mark.parametrize("stage", [s for s in STAGES if shard_of(s) not in ("all",)])
def test_two_shards_by_two_processes(
    reference: Reference, stage: str, tmp_path: Path, tell: Tale
) -> None:
    pairs = [(stage, FIRST), (stage, shard_of(stage))]
    write_at_once(reference, stage, pairs, tmp_path, tell)
    tell.faults["two processes on two shards"] += 1


@pytest.mark.long
def test_an_index_is_made_while_a_shard_is_written(
    reference: Reference, tmp_path: Path, tell: Tale
) -> None:
    """The two commit to one LanceDB table: what loses the race is tried again."""
    pairs = [("embedding_index", "all"), ("chunk_embeddings", shard_of("chunk_embeddings"))]
    write_at_once(reference, "embedding_index", pairs, tmp_path, tell)
    tell.faults["index and shard at once"] += 1


def test_a_commit_conflict_is_tried_again_and_ends_as_undisturbed(
    reference: Reference, tmp_path: Path, tell: Tale
) -> None:
    """A real one: a compaction that began before another process took rows out."""
    stage = "embedding_index"
    reference.make(stage)
    data, home = tmp_path / "data", tmp_path / "home"
    reference.copy(stage, data, home)
    stale, other = open_table(TableStore(str(data))), open_table(TableStore(str(data)))
    doc = next(other.scan(["doc_id"], FIRST))["doc_id"][0]
    other.delete_documents(FIRST, [doc])
    with pytest.raises(RuntimeError, match="commit conflict") as caught:
        stale.optimize()
    assert is_transient(caught.value)
    tell.faults["LanceDB commit conflict"] += 1
    # The rows that were taken out come back with their shard.
    Stage(reference.values(data), home, "chunk_embeddings", FIRST).finish()
    rerun(reference, stage, data, home, tell)

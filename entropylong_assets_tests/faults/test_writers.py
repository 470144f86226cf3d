"""Two processes that materialize the same shard, or two shards, at the same time. Each has its own
Dagster instance, so that no pool makes one of them wait."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from entropylong_assets.orchestration.errors import is_transient
from entropylong_assets.stages.embeddings.shard_commits import ShardConflictError, open_dataset
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.faults.comparing import rerun
from entropylong_assets_tests.faults.processes import Stage, witnessed
from entropylong_assets_tests.faults.reference import FIRST, STAGES, Reference, shard_of
from entropylong_assets_tests.faults.summary import FaultRecord


def write_at_once(
    reference: Reference, stage: str, pairs: list[tuple[str, str]], where: Path, record: FaultRecord
) -> None:
    """Materialize these stages and shards at the same time, then the stage alone."""
    reference.make(stage)
    data = where / "data"
    reference.copy(stage, data, where / "home")
    with witnessed(data, reference.versions(stage), reference.rows(stage)) as seen:
        processes = []
        for number, (asset, shard) in enumerate(pairs):
            home = Path(shutil.copytree(where / "home", where / f"home-{number}"))
            process = Stage(reference.values(data), home, asset, shard, pauses=False)
            processes.append(process)
        for process in processes:
            process.finish()
        assert processes[-1].began < processes[0].ended, "they did not run at the same time"
        rerun(reference, stage, data, where / "home", record)
    record.looks, record.whole_seen = seen["looks"], seen.get("whole", 0)
    record.differences += [f"seen: {fault}" for fault in seen["faults"]]
    assert record.differences == []


def test_one_shard_by_two_processes_in_short(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    stage = "chunk_embeddings"
    write_at_once(reference, stage, [(stage, shard_of(stage))] * 2, tmp_path, record)
    record.faults["two processes on one shard"] += 1


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_one_shard_by_two_processes(
    reference: Reference, stage: str, tmp_path: Path, record: FaultRecord
) -> None:
    write_at_once(reference, stage, [(stage, shard_of(stage))] * 2, tmp_path, record)
    record.faults["two processes on one shard"] += 1


@pytest.mark.long
@pytest.mark.parametrize("stage", [s for s in STAGES if shard_of(s) not in ("all",)])
def test_two_shards_by_two_processes(
    reference: Reference, stage: str, tmp_path: Path, record: FaultRecord
) -> None:
    pairs = [(stage, FIRST), (stage, shard_of(stage))]
    write_at_once(reference, stage, pairs, tmp_path, record)
    record.faults["two processes on two shards"] += 1


@pytest.mark.long
def test_an_index_is_made_while_a_shard_is_written(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    """Both commit to one LanceDB table. The loser of the race is retried."""
    pairs = [("embedding_index", "all"), ("chunk_embeddings", shard_of("chunk_embeddings"))]
    write_at_once(reference, "embedding_index", pairs, tmp_path, record)
    record.faults["index and shard at once"] += 1


@pytest.mark.long
def test_a_commit_conflict_is_tried_again_and_ends_as_undisturbed(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    """The conflict is real: rows are added to a shard that another process has replaced since."""
    stage = "embedding_index"
    reference.make(stage)
    data, home = tmp_path / "data", tmp_path / "home"
    reference.copy(stage, data, home)
    store = TableStore(str(data))
    stale, other = open_table(store), open_table(store)
    rows = open_dataset(store.corpus_uri).to_table(filter=f"shard = '{FIRST}'").to_batches()
    other.replace_shard(FIRST, [rows[0].slice(0, 1)])
    with pytest.raises(ShardConflictError, match="commit conflict") as caught:
        stale.extend_shard(FIRST, rows)
    assert is_transient(caught.value)
    record.faults["LanceDB commit conflict"] += 1
    # Embedding the shard again restores its rows.
    Stage(reference.values(data), home, "chunk_embeddings", FIRST).finish()
    rerun(reference, stage, data, home, record)

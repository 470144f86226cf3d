"""SIGKILL at random moments of every stage: a rerun gives the tables of an undisturbed run, and a
reader never sees incomplete data."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.comparing import rerun
from entropylong_assets_tests.faults.processes import Stage, forkserver_threads, witnessed
from entropylong_assets_tests.faults.reference import STAGES, Reference, lance_files, shard_of
from entropylong_assets_tests.faults.summary import SEED, FaultRecord


def kill_once(
    reference: Reference,
    stage: str,
    where: Path,
    draw: random.Random,
    mode: str,
    part: int,
    parts: int,
) -> bool:
    """Start the stage and kill it. Returns whether it was killed before its end.

    mode: `moment` kills at a random time; `operation` before one of its file operations under the
    data folder; `lance` when one of its files appears in the LanceDB table. part, parts: the
    operation is drawn from this part of all operations, so that a few kills cover the whole stage.
    """
    data, shard = where / "data", shard_of(stage)
    values = reference.values(data)
    if mode == "operation":
        operations = reference.operations[stage]
        first = part * operations // parts + 1
        die_at = draw.randint(first, max(first, (part + 1) * operations // parts))
        return Stage(values, where / "home", stage, shard, die_at).killed()
    if mode == "lance":
        files = lance_files(data) + draw.randint(1, reference.lance_files[stage])
        process = Stage(values, where / "home", stage, shard)
        return process.kill_when(lambda: lance_files(data) >= files)
    process = Stage(values, where / "home", stage, shard)
    return process.kill_after(draw.uniform(0, reference.seconds[stage]))


def kill_and_rerun(
    reference: Reference, stage: str, kills: int, where: Path, record: FaultRecord
) -> None:
    reference.make(stage)
    data = where / "data"
    reference.copy(stage, data, where / "home")
    draw = random.Random(f"{SEED}:{stage}")
    modes = ["moment", "operation", *(["lance"] if reference.lance_files[stage] else [])]
    torn = 0
    with witnessed(data, reference.versions(stage), reference.rows(stage)) as seen:
        parts = -(-kills // len(modes))
        for attempt in range(4 * kills):
            turn, mode = divmod(attempt, len(modes))
            if kill_once(reference, stage, where, draw, modes[mode], turn % parts, parts):
                record.kills[stage] += 1
                torn += bool(witness.leftovers(data))
            if record.kills[stage] == kills:
                break
        rerun(reference, stage, data, where / "home", record)
    record.looks, record.whole_seen = seen["looks"], seen.get("whole", 0)
    record.differences += [f"seen: {fault}" for fault in seen["faults"]]
    assert record.differences == []
    assert record.kills[stage] == kills
    assert record.looks > kills
    assert torn or stage in ("scan", "embedding_index") or kills < 10, "the kills never hit a write"


def test_the_forkserver_has_no_thread_that_a_fork_would_lose() -> None:
    assert forkserver_threads() == 1


@pytest.mark.parametrize(
    ("stage", "kills"),
    [pytest.param("corpus_documents", 4, marks=pytest.mark.long), ("chunk_embeddings", 6)],
)
def test_a_killed_stage_in_short(
    reference: Reference, stage: str, kills: int, tmp_path: Path, record: FaultRecord
) -> None:
    kill_and_rerun(reference, stage, kills, tmp_path, record)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage(
    reference: Reference, stage: str, tmp_path: Path, record: FaultRecord
) -> None:
    kill_and_rerun(reference, stage, 10, tmp_path, record)

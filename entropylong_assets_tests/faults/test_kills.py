"""SIGKILL at seeded moments of every stage: a rerun ends in the undisturbed tables, and a reader
beside it never saw anything half-written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.comparing import rerun
from entropylong_assets_tests.faults.processes import Stage, forkserver_threads, witnessed
from entropylong_assets_tests.faults.reference import STAGES, Reference, lance_files, shard_of
from entropylong_assets_tests.faults.summary import SEED, Tale


def kill_once(
    reference: Reference,
    stage: str,
    where: Path,
    draw: random.Random,
    mode: str,
    part: int,
    parts: int,
) -> bool:
    """Starts the stage and kills it; whether it was killed before its end.

    `moment`: at any time of its course. `act`: before one of its acts on files under the data
    folder, in that part of them: drawn from all, a handful may miss every write of a stage that
    writes little. `lance`: as one of its files appears in the LanceDB table.
    """
    data, shard = where / "data", shard_of(stage)
    values = reference.values(data)
    if mode == "act":
        acts = reference.acts[stage]
        first = part * acts // parts + 1
        die_at = draw.randint(first, max(first, (part + 1) * acts // parts))
        return Stage(values, where / "home", stage, shard, die_at).killed()
    if mode == "lance":
        there = lance_files(data)
        wanted = there + draw.randint(1, reference.lance_files[stage])
        going = Stage(values, where / "home", stage, shard)
        return going.kill_when(lambda: lance_files(data) >= wanted)
    going = Stage(values, where / "home", stage, shard)
    return going.kill_after(draw.uniform(0, reference.seconds[stage]))


def kill_and_rerun(reference: Reference, stage: str, kills: int, where: Path, tell: Tale) -> None:
    reference.make(stage)
    data = where / "data"
    reference.copy(stage, data, where / "home")
    draw = random.Random(f"{SEED}:{stage}")
    modes = ["moment", "act", *(["lance"] if reference.lance_files[stage] else [])]
    torn = 0
    with witnessed(data, reference.versions(stage), reference.rows(stage)) as seen:
        parts = -(-kills // len(modes))
        for attempt in range(4 * kills):
            turn, mode = divmod(attempt, len(modes))
            if kill_once(reference, stage, where, draw, modes[mode], turn % parts, parts):
                tell.kills[stage] += 1
                torn += bool(witness.left_behind(data))
            if tell.kills[stage] == kills:
                break
        rerun(reference, stage, data, where / "home", tell)
    tell.looks, tell.whole_seen = seen["looks"], seen.get("whole", 0)
    tell.differences += [f"seen: {fault}" for fault in seen["faults"]]
    assert tell.differences == []
    assert tell.kills[stage] == kills
    assert tell.looks > kills
    assert torn or stage in ("scan", "embedding_index") or kills < 10, "the kills never hit a write"


def test_the_forkserver_has_no_thread_that_a_fork_would_lose() -> None:
    assert forkserver_threads() == 1


@pytest.mark.parametrize(("stage", "kills"), [("corpus_documents", 4), ("chunk_embeddings", 6)])
def test_a_killed_stage_in_short(
    reference: Reference, stage: str, kills: int, tmp_path: Path, tell: Tale
) -> None:
    kill_and_rerun(reference, stage, kills, tmp_path, tell)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage(reference: Reference, stage: str, tmp_path: Path, tell: Tale) -> None:
    kill_and_rerun(reference, stage, 10, tmp_path, tell)

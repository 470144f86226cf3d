"""A run killed in the middle of a shard loses at most one batch and ends in the same tables."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.verification.shard_verification import (
    VerifiedShard,
    checkpoints_key,
)
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.stored_scores import StoredScores
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import determining_settings
from entropylong_assets.storage.checkpoints import (
    PREFIX,
    Batch,
    Checkpoints,
    remove_checkpoints,
)
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import verify, with_verification


def folders(store: TableStore, shard: str) -> list[str]:
    folder = Path(store.folder(VERIFIED_DEPENDENCIES, shard))
    return [path.name for path in folder.iterdir() if path.name.startswith(PREFIX)]


@pytest.mark.parametrize("screen", ["none", "splice"])
def test_a_killed_run_is_resumed_and_ends_in_the_same_tables(
    world: World, tmp_path: Path, screen: str
) -> None:
    """With a screen, later batches depend on what earlier ones have taught."""
    changed = with_verification(
        world.settings, rule="plain", epsilon=0.4, screen=screen, screen_recall=0.5
    )
    shard, settings = world.shards[0], tmp_path / "settings.json"
    settings.write_text(changed.model_dump_json())
    straight, killed = TableStore(str(tmp_path / "straight")), TableStore(str(tmp_path / "killed"))
    batches: list[int] = []
    whole = verify(changed, shard, straight, on_root=batches.append)
    assert len(batches) >= 3, "otherwise there is no middle"

    command = [sys.executable, "-m", "entropylong_assets_tests.stages.verification.one_shard"]
    process = subprocess.Popen(
        [*command, str(settings), shard, killed.uri, "2"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "in the middle"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert killed.manifest(VERIFIED_DEPENDENCIES, shard) is None, "nothing unfinished is visible"
    assert folders(killed, shard) == [f"{PREFIX}k"]

    scored: list[int] = []
    done = verify(changed, shard, killed, key="k", on_root=scored.append)
    assert done.verified.resumed_batches == 2
    assert scored == batches
    versions = {s.require(VERIFIED_DEPENDENCIES, shard).data_version for s in (killed, straight)}
    assert len(versions) == 1
    assert done.verified.screen == whole.verified.screen
    screened_out = (whole.pairs["verdict"] == "screened_out").sum()
    assert (screened_out > 0) == (screen == "splice"), "otherwise nothing was learned"
    assert folders(killed, shard) == [], "a published partition has no checkpoints"


def shares_of_batches(
    world: World, into: TableStore, stored: StoredScores | None = None
) -> tuple[list[list[tuple[int, float]]], VerifiedShard]:
    """Verify a shard. Return the tokens of each pass and the share reported after it, by batch."""
    batches: list[list[tuple[int, float]]] = [[]]
    roots_of_batch: list[tuple[int, float]] = []

    def on_root(roots: int) -> None:
        batches[-1] += [(tokens, done / roots) for tokens, done in roots_of_batch]
        batches.append([])
        roots_of_batch.clear()

    done = verify(
        world.settings,
        world.shards[0],
        into,
        on_root=on_root,
        on_progress=lambda tokens, roots: roots_of_batch.append((tokens, roots)),
        stored=stored,
    )
    return batches[:-1], done.verified


def test_progress_follows_the_work_to_the_end_of_a_batch(world: World, tmp_path: Path) -> None:
    """It stood at 75% while evidence spans were searched, and the time left was twice too long.

    The oracle is the count of tokens when all is done.
    """
    batches, done = shares_of_batches(world, TableStore(str(tmp_path)))
    all_tokens = done.forward_tokens + done.evidence_tokens
    assert sum(tokens for batch in batches for tokens, _ in batch) == all_tokens
    assert len(batches) >= 2
    assert done.evidence_tokens > 0.1 * done.forward_tokens
    for batch in batches:
        tokens, shares = np.array(batch).T
        true = np.cumsum(tokens) / tokens.sum()
        assert shares.tolist() == sorted(shares)
        assert 0.8 < shares[-1] < 1
        assert np.abs(shares - true).max() < 0.25


def test_known_scores_are_no_part_of_the_share(world: World, tmp_path: Path) -> None:
    """They are read in no time, after which the search alone took all of it, from 75% on."""
    stored = StoredScores(open_store(world.settings), world.shards[0])
    batches, done = shares_of_batches(world, TableStore(str(tmp_path)), stored)
    assert done.evidence_tokens > 0
    of_batches = [[share for tokens, share in batch if tokens] for batch in batches]
    assert all(shares[0] == 0 for shares in of_batches), "tokens of known scores"
    searched = [shares for shares in of_batches if shares[-1]]
    assert len(searched) == 2, "of three batches, the last one accepts nothing"
    assert all(len(set(shares)) > 2 and shares[-1] > 0.8 for shares in searched)


def test_checkpoints_of_another_key_or_damaged_ones_are_not_loaded(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    checkpoints = Checkpoints(store, VERIFIED_DEPENDENCIES, "s", "one")
    rows = pl.DataFrame({"a": [1, 2]}, schema={"a": pl.Int32})
    checkpoints.save(0, Batch({"pairs": rows}, {"forward_tokens": 7}))
    again = checkpoints.load(0)
    assert again is not None
    assert again.tables["pairs"].equals(rows)
    assert again.tables["pairs"].schema == rows.schema
    assert again.figures == {"forward_tokens": 7}
    assert checkpoints.load(1) is None
    assert Checkpoints(store, VERIFIED_DEPENDENCIES, "s", "two").load(0) is None
    partition = Path(store.folder(VERIFIED_DEPENDENCIES, "s"))
    path = partition / f"{PREFIX}one" / "0-pairs.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert checkpoints.load(0) is None
    path.unlink()
    assert checkpoints.load(0) is None
    remove_checkpoints(store, VERIFIED_DEPENDENCIES, "s")
    assert list(partition.iterdir()) == []


BASIS = {"code": 2, "model": "m@1:float32", "inputs": {"entropy_scores": "a"}, "settings": {"e": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"code": 3},
        {"model": "m@2:float32"},
        {"model": "m@1:bfloat16"},
        {"inputs": {"entropy_scores": "b"}},
        {"settings": {"e": 2}},
    ],
)
def test_the_key_depends_on_what_determines_a_batch(change: dict[str, object]) -> None:
    settings = make_project().dataset
    key = checkpoints_key(BASIS, settings, "cpu")
    assert key == checkpoints_key(dict(reversed(BASIS.items())), settings, "cpu")
    assert key != checkpoints_key(BASIS | change, settings, "cpu")


def key_of(settings: Settings, device: str = "cpu") -> str:
    found = determining_settings(VERIFIED_DEPENDENCIES_STAGE, settings)
    return checkpoints_key(BASIS | {"settings": found}, settings, device)


@pytest.mark.parametrize(
    "change",
    [
        {"scoring": {"pack_tokens": 64}},
        {"verification": {"screen": "bfloat16"}},
        {"verification": {"max_contexts_per_root": 3}},
    ],
)
def test_the_key_depends_on_the_way_of_scoring(change: dict[str, dict[str, object]]) -> None:
    settings, other = make_project().dataset, make_project(change).dataset
    assert key_of(settings) != key_of(other)
    assert key_of(other) != key_of(other, "cuda:0")


def test_a_published_shard_has_no_checkpoints(world: World) -> None:
    assert [folders(world.store, shard) for shard in world.shards] == [[] for _ in world.shards]

"""A run killed in the middle of a shard loses one batch at most, and ends in the same tables."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from entropylong_assets.settings.model import make_settings
from entropylong_assets.stages.verification.shard_verification import batches_key
from entropylong_assets.storage.checkpoints import PREFIX, Batch, KeptBatches
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import ASSET, verify


def folders(store: TableStore, shard: str) -> list[str]:
    folder = Path(store.folder(ASSET, shard))
    return [path.name for path in folder.iterdir() if path.name.startswith(PREFIX)]


def test_a_killed_run_is_taken_up_and_ends_in_the_same_tables(world: World, tmp_path: Path) -> None:
    shard, settings = world.shards[0], tmp_path / "settings.json"
    settings.write_text(world.settings.model_dump_json())
    straight, killed = TableStore(str(tmp_path / "straight")), TableStore(str(tmp_path / "killed"))
    batches: list[int] = []
    verify(world.settings, shard, straight, on_root=batches.append)
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
    assert killed.manifest(ASSET, shard) is None, "nothing half-done is visible"
    assert folders(killed, shard) == [f"{PREFIX}k"]

    scored: list[int] = []
    done = verify(world.settings, shard, killed, key="k", on_root=scored.append)
    assert done.done.batches_taken_up == 2
    assert scored == batches
    assert killed.require(ASSET, shard).data_version == straight.require(ASSET, shard).data_version
    assert folders(killed, shard) == [], "what is published needs no batches"


def test_another_key_finds_nothing_and_damage_is_done_again(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    kept = KeptBatches(store, ASSET, "s", "one")
    rows = pl.DataFrame({"a": [1, 2]}, schema={"a": pl.Int32})
    kept.keep(0, Batch({"pairs": rows}, {"forward_tokens": 7}))
    again = kept.load(0)
    assert again is not None
    assert again.tables["pairs"].equals(rows)
    assert again.tables["pairs"].schema == rows.schema
    assert again.figures == {"forward_tokens": 7}
    assert kept.load(1) is None
    assert KeptBatches(store, ASSET, "s", "two").load(0) is None
    path = tmp_path / ASSET / "s" / f"{PREFIX}one" / "0-pairs.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert kept.load(0) is None
    path.unlink()
    assert kept.load(0) is None
    kept.remove_all()
    assert list((tmp_path / ASSET / "s").iterdir()) == []


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
def test_what_determines_a_batch_is_in_its_key(change: dict[str, object]) -> None:
    settings = make_settings()
    key = batches_key(BASIS, settings, "cpu")
    assert key == batches_key(dict(reversed(BASIS.items())), settings, "cpu")
    assert key != batches_key(BASIS | change, settings, "cpu")


@pytest.mark.parametrize(
    "change", [{"pack_tokens": 64}, {"screen": "bfloat16"}, {"max_contexts_per_root": 3}]
)
def test_a_changed_way_of_scoring_is_in_the_key(change: dict[str, object]) -> None:
    other = make_settings(overrides={"scoring": change})
    assert batches_key(BASIS, make_settings(), "cpu") != batches_key(BASIS, other, "cpu")
    assert batches_key(BASIS, other, "cpu") != batches_key(BASIS, other, "cuda:0")


def test_a_published_shard_leaves_no_batches(world: World) -> None:
    assert [folders(world.store, shard) for shard in world.shards] == [[] for _ in world.shards]

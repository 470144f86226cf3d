"""A full disk and a folder without write permission: a one-line error, no incomplete data, and a
rerun gives the tables of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.comparing import rerun
from entropylong_assets_tests.faults.processes import Stage, witnessed
from entropylong_assets_tests.faults.reference import STAGES, Reference, shard_of
from entropylong_assets_tests.faults.summary import SEED, FaultRecord

DISK_MIB = 32


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on its own disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def leave_free(disk: Path, n_bytes: int) -> None:
    """Fill the disk until only `n_bytes` are free."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - n_bytes)))


def fill_and_rerun(
    reference: Reference, stage: str, times: int, disk: Path, record: FaultRecord
) -> None:
    reference.make(stage)
    data, home, shard = disk / "data", disk.parent / "home", shard_of(stage)
    reference.copy(stage, data, home)
    draw = random.Random(f"{SEED}:disk:{stage}")
    with witnessed(data, reference.versions(stage), reference.rows(stage)) as seen:
        for attempt in range(times):
            leave_free(disk, draw.randrange(1 << 16) if attempt else 0)
            state, message = Stage(
                reference.values(data), home, stage, shard, pauses=False
            ).outcome()
            if state == "done":  # the free space was enough
                continue
            record.faults["full disk"] += 1
            assert "no space left" in message, message
            assert "\n" not in message
        (disk / "filler").unlink()
        rerun(reference, stage, data, home, record)
    record.looks, record.whole_seen = seen["looks"], seen.get("whole", 0)
    record.differences += [f"seen: {fault}" for fault in seen["faults"]]
    assert record.differences == []
    assert record.faults["full disk"] >= 1


@pytest.mark.long
def test_a_full_disk_in_short(reference: Reference, disk: Path, record: FaultRecord) -> None:
    fill_and_rerun(reference, "chunk_embeddings", 2, disk, record)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(reference: Reference, stage: str, disk: Path, record: FaultRecord) -> None:
    fill_and_rerun(reference, stage, 3, disk, record)


def allow(folder: Path, mode: int) -> None:
    """Set the permissions of a folder and of all folders in it."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def refuse_and_rerun(reference: Reference, stage: str, where: Path, record: FaultRecord) -> None:
    reference.make(stage)
    data, home, shard = where / "data", where / "home", shard_of(stage)
    reference.copy(stage, data, home)
    before = witness.tree_of(data)
    allow(data, 0o555)
    message = Stage(reference.values(data), home, stage, shard, rights=False).fail()
    record.faults["no write permission"] += 1
    assert "no permission: " in message, message
    assert str(data) in message
    assert "\n" not in message
    assert witness.tree_of(data) == before
    allow(data, 0o755)
    rerun(reference, stage, data, home, record)


def test_a_folder_without_write_permission_in_short(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    refuse_and_rerun(reference, "corpus_documents", tmp_path, record)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_without_write_permission(
    reference: Reference, stage: str, tmp_path: Path, record: FaultRecord
) -> None:
    refuse_and_rerun(reference, stage, tmp_path, record)

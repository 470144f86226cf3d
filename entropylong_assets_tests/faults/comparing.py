"""Comparing the data after a rerun with the data of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.processes import Stage
from entropylong_assets_tests.faults.reference import Reference, shard_of
from entropylong_assets_tests.faults.summary import FaultRecord


def differences(reference: Reference, stage: str, data: Path) -> list[str]:
    """Files and LanceDB rows that differ from the undisturbed run, and leftovers of killed runs."""
    ours, theirs = witness.tree_of(data, reference.folder / "data"), reference.tree(stage)
    different = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if witness.rows_of(str(data)) != witness.rows_of(str(reference.after(stage))):
        different.append("rows of the LanceDB table")
    return [f"{stage}: {name}" for name in sorted(different)] + [
        f"left over: {name}" for name in witness.leftovers(data)
    ]


def rerun(reference: Reference, stage: str, data: Path, home: Path, record: FaultRecord) -> None:
    """Run the stage without a fault; fail if its data differs from that of the undisturbed run."""
    Stage(reference.values(data), home, stage, shard_of(stage)).finish()
    record.differences += differences(reference, stage, data)
    assert record.differences == []
    record.recoveries += 1

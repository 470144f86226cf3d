"""Whether a rerun ended as an undisturbed run does."""

from __future__ import annotations

from pathlib import Path

from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.processes import Stage
from entropylong_assets_tests.faults.reference import Reference, shard_of
from entropylong_assets_tests.faults.summary import Tale


def differences(reference: Reference, stage: str, data: Path) -> list[str]:
    """Files and LanceDB rows that are not those of the undisturbed run, and what was left."""
    ours, theirs = witness.tree_of(data, reference.folder / "data"), reference.tree(stage)
    found = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if witness.rows_of(str(data)) != witness.rows_of(str(reference.after(stage))):
        found.append("rows of the LanceDB table")
    return [f"{stage}: {name}" for name in sorted(found)] + [
        f"left over: {name}" for name in witness.left_behind(data)
    ]


def rerun(reference: Reference, stage: str, data: Path, home: Path, tell: Tale) -> None:
    """Runs the stage with nothing in its way; fails where it ends otherwise than undisturbed."""
    Stage(reference.values(data), home, stage, shard_of(stage)).finish()
    tell.differences += differences(reference, stage, data)
    assert tell.differences == []
    tell.recoveries += 1

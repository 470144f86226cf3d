"""The clock is set back by two days in the middle of a stage, and between two stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.stage import TRAINING_DATASET_STAGE
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets_tests.e2e.server import PROJECT
from entropylong_assets_tests.faults.comparing import rerun
from entropylong_assets_tests.faults.reference import STAGES, Reference, shard_of
from entropylong_assets_tests.faults.summary import FaultRecord
from entropylong_assets_tests.stage_names import path_of

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
needs_faketime = pytest.mark.skipif(
    FAKETIME is None, reason="no faketime: apt-get install faketime"
)
BACK = "-2d"


def run_under_a_clock(
    reference: Reference, stage: str, data: Path, home: Path, *, set_back_in_the_middle: bool
) -> None:
    """Run the stage in a process whose clock is set back.

    set_back_in_the_middle: set it back once the run has started, not before.
    """
    clock = home / "clock"
    clock.write_text("+0" if set_back_in_the_middle else BACK)
    known = {run.dagster_run.run_id for run in runs_of(home)}
    values = json.dumps(reference.values(data))
    environment = os.environ | {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # setting a real clock does not change it either
        "DAGSTER_HOME": str(home),
        "PYTHONPATH": str(PROJECT),
    }
    command = [sys.executable, "-m", "entropylong_assets_tests.faults.stage", values]
    with (home / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [*command, stage, shard_of(stage)],
            cwd=home,
            env=environment,
            stdout=output,
            stderr=output,
        )
        while set_back_in_the_middle and clock.read_text() != BACK:
            assert process.poll() is None, "the stage ended before the clock was set back"
            started = (r.dagster_run.run_id for r in runs_of(home) if r.start_time is not None)
            if set(started) - known:
                clock.write_text(BACK)
            time.sleep(0.05)
        assert process.wait(180) == 0, (home / "output.txt").read_text()[-2000:]


def runs_of(home: Path) -> Sequence[dg.RunRecord]:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return instance.get_run_records()


def newest_event(home: Path, asset: str) -> dg.EventLogRecord:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return instance.fetch_materializations(dg.AssetKey(path_of(asset)), limit=1).records[0]


@needs_faketime
@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_clock_goes_back_in_the_middle_of_a_stage(
    reference: Reference, stage: str, tmp_path: Path, record: FaultRecord
) -> None:
    reference.make(stage)
    data, home = tmp_path / "data", tmp_path / "home"
    reference.copy(stage, data, home)
    run_under_a_clock(reference, stage, data, home, set_back_in_the_middle=True)
    yesterday = time.time() - 86_400
    newest = max(runs_of(home), key=lambda run: run.storage_id)
    assert newest.start_time is not None
    assert newest.start_time > yesterday > newest_event(home, stage).timestamp
    record.faults["clock set back"] += 1
    rerun(reference, stage, data, home, record)


@needs_faketime
@pytest.mark.long
def test_samples_made_after_the_clock_went_back_are_exported(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    """By the clock, the export is newer than the samples that it does not contain."""
    reference.make(STAGES[-1])
    data, home = tmp_path / "data", tmp_path / "home"
    reference.copy(STAGES[-1], data, home)

    def reason() -> str | None:
        """Why the export is not up to date."""
        dataset = make_project(reference.values(data)).dataset
        return stale_reason(TRAINING_DATASET_STAGE, Partition(dataset, open_store(dataset)))

    assert reason() is None
    reference = replace(reference, content={**reference.content, "seed": 7})
    run_under_a_clock(reference, "verified_dependencies", data, home, set_back_in_the_middle=False)
    run_under_a_clock(reference, "long_context_samples", data, home, set_back_in_the_middle=False)
    export, samples = (newest_event(home, a) for a in ("training_dataset", "long_context_samples"))
    assert samples.timestamp < export.timestamp
    assert reason() is not None
    record.faults["clock set back"] += 1
    record.recoveries += 1

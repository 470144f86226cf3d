"""Progress of a run is seen while a step runs, in a pipe and in a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from entropylong_assets.cli.progress_bars import JobBars, JobProgress
from entropylong_assets.stages.progress import ProgressState

SCRIPT = """
import os, sys, time
from types import SimpleNamespace
from entropylong_assets.cli.run_progress import RunProgress
from entropylong_assets.orchestration import assets
from entropylong_assets.stages.progress import ProgressState, announce

settings, job, stage = (SimpleNamespace(name=n) for n in ("ours", "verify", "verified"))
with RunProgress(every=0.2) as progress:
    recorded = progress.watcher
    recorded.on_job(settings, job, ["s-0", "s-1"], 7)
    recorded.on_start(settings, job, "s-0")
    announce("loading the model m …")
    kept = os.dup(1)
    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 1)  # as Dagster does during a step
    state = ProgressState("tokens", 900, None, 300.0, ("roots", 4, 16), 9.0)
    for _ in range(100):
        for observer in assets.observers:
            observer(stage, "s-0", state)
        time.sleep(0.05)
        if os.path.exists(sys.argv[2]):
            break
    os.dup2(kept, 1)
    recorded.on_end(settings, job, "s-0", True)
    recorded.on_start(settings, job, "s-1")
    recorded.on_end(settings, job, "s-1", True)
print("ended")
"""
LINE = r"s-0 \| verified: 4 of 16 roots \(25%\), 300 tokens/s, 9 s left"


def run(folder: Path, output: int) -> subprocess.Popen[bytes]:
    arguments = [str(folder / "compute-logs"), str(folder / "seen")]
    environment = os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=output, env=environment
    )


def read_until(descriptor: int, pattern: str, seconds: float = 120) -> str:
    """What was written up to the first match. Fails if there is none before the end."""
    text, end = "", time.monotonic() + seconds
    while not re.search(pattern, text):
        assert time.monotonic() < end, text
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the other end of a terminal is closed
            piece = b""
        assert piece, text
        text += piece.decode()
    return text


def test_plain_lines_in_a_pipe_while_standard_output_is_redirected(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = run(tmp_path, writer)
    os.close(writer)
    during = read_until(reader, LINE)
    assert "ended" not in during, "the line has to appear while the step runs"
    (tmp_path / "seen").touch()
    text = during + read_until(reader, "ended")
    assert process.wait(60) == 0
    assert "ours verify: 2 shards to run, 7 up to date\n" in text
    assert re.search(rf"\d\d:\d\d:\d\d ours verify, 1 of 2: {LINE}\n", text)
    assert re.search(r"ours verify: 2 shards in \d+ s\n", text)
    assert len(re.findall(r"\d\d:\d\d:\d\d loading the model m …\n", text)) == 1
    assert "\x1b" not in text, "no control sequences in a file"
    assert (tmp_path / "compute-logs").read_text() == ""


def test_bars_in_a_terminal_while_standard_output_is_redirected(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    process = run(tmp_path, theirs)
    os.close(theirs)
    during = read_until(terminal, LINE)
    assert "\x1b[" in during
    assert "━" in during
    assert "7 up to date" in during
    assert "ended" not in during
    (tmp_path / "seen").touch()
    read_until(terminal, r"2/2[\s\S]*ended")
    assert process.wait(60) == 0


def test_time_left_for_all_shards_counts_those_that_run() -> None:
    """4 shards to run; 2 took 30 s each; 10 s of the third have passed."""
    job = JobProgress("ours verify", shards=4, began=100.0)
    job.shard, job.shard_began = "s-0", 100.0
    assert job.seconds_left(110.0) is None
    job.finished, job.shard, job.shard_began = 2, "s-2", 160.0
    assert job.seconds_left(170.0) == pytest.approx(50.0)
    job.stage = "verified"
    job.state = ProgressState("rows", 5, 10, 1.0)
    line = "s-2 | verified: 5 of 10 rows (50%), 1 rows/s | all shards 50 s left"
    assert job.doing(170.0) == line
    assert 2.0 < job.completed < 3.0


def test_time_left_of_a_shard_that_takes_longer_than_the_others_is_never_zero() -> None:
    """It was "0 s left" for two minutes while the last and largest shard was verified."""
    job = JobProgress("ours verify", shards=3, began=0.0, finished=1, shard_began=10.0)
    assert job.seconds_left(40.0) == pytest.approx(10.0), "the third shard"
    job.state = ProgressState("tokens", 900, None, 30.0, ("roots", 1.5, 4), 50.0)
    assert job.seconds_left(40.0) == pytest.approx(60.0)
    job.finished, job.shard_began = 2, 20.0
    assert job.seconds_left(40.0) == pytest.approx(50.0)
    job.state = ProgressState("tokens", 900, None, 30.0)
    assert job.seconds_left(40.0) is None
    assert "left" not in job.doing(40.0)


@pytest.mark.parametrize("width", [200, 150, 120, 100, 80, 60, 30])
def test_a_narrow_terminal_leaves_parts_out_and_never_cuts_figures(width: int) -> None:
    """At 100 columns the bar had no width, and the time left was cut."""
    console = Console(file=io.StringIO(), width=width, height=40, force_terminal=True)
    bars = JobBars(console)
    state = ProgressState("tokens", 9000, None, 257.0, ("roots", 1.5, 2), 723.0)
    finished = JobProgress("corpus ingest", 1, time.monotonic(), finished=1)
    job = JobProgress("dataset verify", 3, time.monotonic(), skipped=7)
    job.shard, job.shard_began = "docs-00000", time.monotonic()
    job.stage, job.state = "verified_dependencies", state
    bars.add_job(finished)
    bars.add_job(job)
    console.print(bars.get_renderable(), no_wrap=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]
    lines = text.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width, text
    whole = re.sub(r"\s", "", text)
    for figure in ("1/1", "0/3", "1of2roots(75%)", "12min3sleft"):
        assert figure in whole, text
    assert "…" not in text
    assert ("━" in text) == (width >= 100), text
    for part, least in (("257 tokens/s", 150), ("docs-00000", 120), ("7 up to date", 120)):
        assert (part in text) == (width >= least), text
    assert len(lines) == 2 or width < 80, text

"""Progress of a run: bars in a terminal, plain lines in a pipe or file.

While a step runs, Dagster redirects the file descriptors 1 and 2 to a file of compute logs. So
progress is written to a copy of descriptor 1: it appears at once, also as bars in a terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TextIO

from rich.console import Console
from rich.markup import escape

from entropylong_assets.cli.progress_bars import JobBars, JobProgress
from entropylong_assets.cli.progress_lines import SECONDS_BETWEEN_LINES, repeating
from entropylong_assets.orchestration import assets
from entropylong_assets.orchestration.runner import Failure, Watcher
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.progress import ProgressState, duration, listening
from entropylong_assets.stages.stage import Job, Stage
from entropylong_assets.storage.tables import WHOLE


def _visible_stream(stack: ExitStack) -> TextIO:
    """A copy of standard output that later redirections of its descriptor do not affect."""
    try:
        copied = os.dup(sys.stdout.fileno())
    except (OSError, ValueError):  # not a file, as in tests
        return sys.stdout
    return stack.enter_context(os.fdopen(copied, "w", encoding="utf-8", buffering=1))


class RunProgress:
    """Shows the progress of a run. Enter it around the run, and pass `watcher` to the run."""

    def __init__(self, every: float = SECONDS_BETWEEN_LINES) -> None:
        self._every = every
        self._stack = ExitStack()
        self._job: JobProgress | None = None
        self._missing: dict[str, MissingSourceError] = {}
        self.watcher = Watcher(
            on_start=self._on_start,
            on_end=self._on_end,
            on_missing=self._missing.__setitem__,
            on_job=self._on_job,
            on_skip=self._on_skip,
            on_failure=self._on_failure,
            on_wait=lambda line: self._print(escape(line)),
        )

    def __enter__(self) -> RunProgress:
        sys.stdout.flush()
        self._console = Console(file=_visible_stream(self._stack), highlight=False)
        self._bars: JobBars | None = None
        if self._console.is_terminal:
            self._bars = JobBars(self._console)
            self._stack.enter_context(self._bars)
        else:
            self._stack.enter_context(repeating(self._print_line, self._every))
        assets.observers.append(self._observe)
        self._stack.callback(assets.observers.remove, self._observe)
        self._stack.enter_context(listening(self._announce))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _print_line(self) -> None:
        job = self._job
        if job is not None and job.shard:
            number = f"{job.finished + 1:,} of {job.shards:,}"
            doing = job.doing(time.monotonic())
            self._print(escape(f"{time.strftime('%H:%M:%S')} {job.name}, {number}: {doing}"))

    def _on_job(self, settings: Settings, job: Job, shards: Sequence[str], n_skipped: int) -> None:
        name = f"{settings.name} {job.name}"
        job_progress = JobProgress(name, len(shards), time.monotonic())
        if list(shards) != [WHOLE]:
            job_progress.skipped = n_skipped
        self._job = job_progress
        if not shards:
            self._print(f"{escape(name)}: up to date")
        elif self._bars:
            self._bars.add_job(job_progress)
        elif list(shards) == [WHOLE]:
            self._print(f"{escape(name)}: over all shards")
        else:
            skipped = f", {n_skipped:,} up to date" if n_skipped else ""
            self._print(f"{escape(name)}: {len(shards):,} shards to run{skipped}")

    def _on_start(self, settings: Settings, job: Job, shard: str) -> None:  # noqa: ARG002
        if self._job:
            self._job.shard, self._job.shard_began = shard, time.monotonic()
            self._job.stage, self._job.state = "", None

    def _on_end(self, settings: Settings, job: Job, shard: str, was_run: bool) -> None:  # noqa: ARG002
        if self._job is None or not was_run:
            return
        state, now = self._job, time.monotonic()
        state.finished += 1
        state.shard, state.shard_began, state.stage, state.state = "", now, "", None
        if state.finished == state.shards and not self._bars:
            what = "" if shard == WHOLE else f"{state.shards:,} shards in "
            self._print(f"{escape(state.name)}: {what}{duration(now - state.began)}")

    def _on_skip(self, settings: Settings, stage: Stage, shard: str, reason: str) -> None:
        where = "" if shard == WHOLE else f", {shard}"
        line = f"{settings.name} {stage.name}{where}: {reason}"
        self._print(f"[yellow]skipped:[/] {escape(line)}")

    def _announce(self, line: str) -> None:
        self._print(escape(f"{time.strftime('%H:%M:%S')} {line}"))

    def _on_failure(self, failure: Failure) -> None:
        self._print(f"[red]failed:[/] {escape(failure.message)}")

    def _observe(self, stage: Stage, shard: str, state: ProgressState) -> None:  # noqa: ARG002
        if self._job:
            self._job.stage, self._job.state = stage.name, state

    def print_missing(self) -> None:
        """Print a line if shards could not be made again, since their source files are missing."""
        if self._missing:
            first = next(iter(self._missing.values()))
            more = f" (and {len(self._missing) - 1:,} more)" if len(self._missing) > 1 else ""
            Console(highlight=False).print(
                f"not made again, data kept: {escape(str(first))}{more}", soft_wrap=True
            )

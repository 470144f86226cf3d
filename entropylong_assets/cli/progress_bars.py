"""Progress of jobs as lines with bars that fit the width of the terminal.

A line that is too wide leaves parts out. Figures are never cut.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from entropylong_assets.stages.progress import ProgressState, duration
from entropylong_assets.storage.tables import WHOLE


@dataclass(frozen=True)
class Layout:
    """Parts of a line."""

    bar: int = 16
    """Characters of the bar; 0: no bar."""
    elapsed: bool = True
    rate: bool = True
    shard: bool = True
    """The key of the present shard."""
    skipped: bool = True
    """The number of shards that are up to date."""
    all_shards: bool = True
    """The time left for all shards."""


FULL = Layout()


def layouts() -> Iterable[Layout]:
    """Yield the layouts, the widest first."""
    layout = FULL
    yield layout
    for leave_out in (
        {"bar": 8},
        {"elapsed": False},
        {"rate": False},
        {"shard": False},
        {"skipped": False},
        {"bar": 0},
        {"all_shards": False},
    ):
        layout = replace(layout, **leave_out)
        yield layout


@dataclass
class JobProgress:
    """Progress of a job. Shards that it skips are not counted."""

    name: str
    shards: int
    began: float
    finished: int = 0
    skipped: int = 0
    """Shards that are up to date."""
    shard: str = ""
    shard_began: float = 0.0
    stage: str = ""
    state: ProgressState | None = None

    def seconds_left(self, now: float) -> float | None:
        """From the mean time of finished shards, and the time that the present step has left.

        None if no shard is finished, or if the last one takes longer than the others and its step
        does not know how long.
        """
        if not self.finished:
            return None
        mean = (self.shard_began - self.began) / self.finished
        of_step = (self.state.seconds_left if self.state else None) or 0.0
        of_shard = max(of_step, mean - (now - self.shard_began))
        others = mean * (self.shards - self.finished - 1)
        return others + of_shard if others or of_shard > 0 else None

    @property
    def completed(self) -> float:
        """Number of finished shards, plus the finished share of the present step."""
        share = self.state.share if self.state else None
        return self.finished + (share or 0.0) * 0.99

    def title(self, layout: Layout = FULL) -> str:
        """The name, and the number of skipped shards."""
        if self.skipped and layout.skipped:
            return f"{self.name}, {self.skipped:,} up to date"
        return self.name

    def doing(self, now: float, layout: Layout = FULL) -> str:
        """One line: shard, stage, its progress, and the time left for all shards."""
        if not self.shard:
            return ""
        parts = [self.shard] if self.shard != WHOLE and layout.shard else []
        if self.stage:
            line = self.state.line(with_rate=layout.rate) if self.state else "started"
            parts.append(f"{self.stage}: {line}")
        else:
            parts.append(f"running for {duration(now - self.shard_began)}")
        left = self.seconds_left(now)
        if left is not None and self.shards > 1 and layout.all_shards:
            parts.append(f"all shards {duration(left)} left")
        return " | ".join(parts)


class JobBars(Progress):
    """One line per job, drawn in the widest layout that fits the terminal."""

    def __init__(self, console: Console) -> None:
        self._spinner = SpinnerColumn()
        self._jobs: dict[int, JobProgress] = {}
        self._width = lambda: console.width
        super().__init__(console=console, redirect_stdout=False, redirect_stderr=False)

    def add_job(self, job: JobProgress) -> None:
        self._jobs[self.add_task(job.name, total=job.shards)] = job

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield a table with a row per job."""
        now, tasks = time.monotonic(), [t for t in self.tasks if t.id in self._jobs]
        for task in tasks:
            task.completed = self._jobs[task.id].completed
            if task.completed >= self._jobs[task.id].shards and task.finished_time is None:
                task.finished_time = task.elapsed
        for layout in layouts():
            rows = [self._row(task, now, layout) for task in tasks]
            if _width(rows, layout) <= self._width():
                break
        # If nothing fits, the last column is wrapped: its figures stay.
        columns = [Column(no_wrap=True) for _ in range(3 if layout.bar else 2)]
        table = Table.grid(*columns, Column(overflow="fold"), padding=(0, 1))
        for task, (title, doing) in zip(tasks, rows, strict=True):
            bar = ProgressBar(total=task.total, completed=task.completed, width=layout.bar)
            bars = [bar] if layout.bar else []
            table.add_row(self._spinner(task), Text(title), *bars, Text(doing))
        yield table

    def _row(self, task: Task, now: float, layout: Layout) -> tuple[str, str]:
        """Return the texts before and after the bar."""
        job = self._jobs[task.id]
        seconds = task.finished_time if task.finished_time is not None else task.elapsed
        parts = [f"{job.finished:,}/{job.shards:,}"]
        parts += [str(timedelta(seconds=int(seconds or 0)))] if layout.elapsed else []
        return job.title(layout), " ".join([*parts, job.doing(now, layout)]).strip()


def _width(rows: Sequence[tuple[str, str]], layout: Layout) -> int:
    """Width of a table with these rows, its spinner included (characters)."""
    before, after = (max((cell_len(row[i]) for row in rows), default=0) for i in (0, 1))
    return len("⠋ ") + before + 1 + (layout.bar + 1 if layout.bar else 0) + after

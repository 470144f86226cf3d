"""What the command line draws: bars while a pipeline runs, and its figures at the end."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import dagster as dg
import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from entropylong_assets.orchestration import metadata
from entropylong_assets.orchestration.local_run import STAGES
from entropylong_assets.report.summary import gather
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.corpus.shards import ShardPlan
from entropylong_assets.storage.tables import WHOLE, TableStore


class RunBars:
    """One bar a job over its shards, with the rate of the step that runs."""

    def __init__(self, console: Console, n_shards: int) -> None:
        self._n_shards = n_shards
        self._tasks: dict[str, TaskID] = {}
        self._job = ""
        self._began = (0.0, 0)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}"),
            console=console,
        )

    def __enter__(self) -> RunBars:
        self._bars.start()
        metadata.observers.append(self._observe)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        metadata.observers.remove(self._observe)
        self._bars.stop()

    def start(self, job: str, shard: str) -> None:
        if job not in self._tasks:
            total = 1 if shard == WHOLE else self._n_shards
            self._tasks[job] = self._bars.add_task(job, total=total, doing="")
        self._job = job
        self._bars.update(self._tasks[job], doing=shard if shard != WHOLE else "")

    def end(self, job: str, shard: str, was_run: bool) -> None:  # noqa: ARG002
        self._bars.update(
            self._tasks[job], advance=1, doing="" if was_run else "[dim]up to date[/]"
        )

    def _observe(self, unit: str, done: int, total: int | None, rate: float) -> None:
        of = f" of {total:,}" if total else ""
        self._bars.update(self._tasks[self._job], doing=f"{done:,}{of} {unit}, {rate:,.0f}/s")


def print_figures(
    console: Console, settings: Settings, plan: ShardPlan, there: dg.DagsterInstance
) -> None:
    """The funnel, the samples, the checks and the seconds of each stage."""
    store, shards = TableStore(settings.data_uri), [shard.key for shard in plan.shards]
    figures = gather(store, shards, settings.verification)
    table = Table(show_header=False, title="What came of it", title_justify="left")
    rows: list[tuple[str, str]] = [
        ("shards", f"{figures.shards:,}"),
        ("documents", f"{figures.documents:,} in {figures.chunks:,} chunks"),
        ("roots", f"{figures.roots:,}"),
        ("anchors", f"{figures.anchors:,}"),
        ("pairs (anchor, chunk)", f"{figures.pairs:,}, scored {figures.pairs_scored:,}"),
    ]
    scored = max(figures.pairs_scored, 1)
    for rule, count in (
        ("plain", figures.accepted_plain),
        ("calibrated", figures.accepted_calibrated),
    ):
        rate = figures.false_acceptance.get(rule)
        chance = (
            f"; random contexts pass in {rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"
            if rate and rate.total
            else ""
        )
        rows.append((f"accepted, {rule} rule", f"{count:,} ({count / scored:.2%}){chance}"))
    if figures.mean_gain is not None:
        calibrated = figures.mean_calibrated_gain
        starred = "" if calibrated is None else f", mean ΔI* {calibrated:.2f}"
        rows.append(("of those in samples", f"mean ΔI {figures.mean_gain:.2f}{starred}"))
    passed, evaluated = count_checks(there, [*shards, WHOLE])
    rows.append(("checks", f"{passed} of {evaluated} passed"))
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    console.print(_sample_table(figures.samples, settings.samples.tokens))
    seconds = Table(show_header=False, title="Seconds, summed over shards", title_justify="left")
    seconds.add_column()
    seconds.add_column(justify="right")
    for asset in [*(asset for asset, _ in STAGES), "training_dataset"]:
        seconds.add_row(asset, f"{stage_seconds(there, asset):,.1f}")
    console.print(seconds)


def print_export(console: Console, made: dict[str, Any]) -> None:
    """What an export holds, where it is, and which shards it leaves out."""
    table = Table(show_header=False, title="Exported", title_justify="left")
    splits = ", ".join(f"{name} {n:,}" for name, n in made["splits"].items())
    for name, value in (
        ("formats", made["formats"]),
        ("samples", f"{splits}; {made['tokens']:,} tokens, {made['bytes']:,} bytes"),
        (
            "dependencies",
            f"{made['dependencies']:,} at {made['anchors']:,} anchors of {made['roots']:,} roots",
        ),
        ("shards", f"{made['shards exported']:,}, left out {made['shards left out']:,}"),
    ):
        table.add_row(name, escape(str(value)))
    console.print(table)
    for name in ("uri", "report"):
        console.print(f"{name}: {escape(str(made[name]))}", soft_wrap=True)
    for shard, fault in made["why left out"].items():
        console.print(f"left out: {escape(shard)}: {escape(fault)}", soft_wrap=True)


def _sample_table(samples: pl.DataFrame, n_tokens: int) -> Table:
    table = Table(
        title=f"Samples of {n_tokens:,} tokens, by the role of their tokens",
        title_justify="left",
    )
    table.add_column("sample", no_wrap=True)
    for name in ("root", "verified", "negative", "padding", "deps"):
        table.add_column(name, justify="right")
    for row in samples.iter_rows(named=True):
        shares = [
            f"{row[f'n_{role}'] / n_tokens:.1%}"
            for role in ("root", "verified", "negative", "padding")
        ]
        table.add_row(row["sample_id"], *shares, f"{row['dependencies']:,}")
    return table


def count_checks(there: dg.DagsterInstance, shards: list[str]) -> tuple[int, int]:
    """Checks passed, and checks evaluated, by the latest evaluation of each check and shard."""
    latest: dict[tuple[dg.AssetKey, str, str], bool] = {}
    records = there.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    )
    for record in records:  # newest first
        event = record.event_log_entry.dagster_event
        assert event is not None
        check = event.asset_check_evaluation_data
        shard = check.partition or WHOLE
        if shard in shards:
            latest.setdefault((check.asset_key, check.check_name, shard), check.passed)
    return sum(latest.values()), len(latest)


def stage_seconds(there: dg.DagsterInstance, asset: str) -> float:
    """Seconds of the latest materialisation of each partition, summed."""
    latest: dict[str | None, float] = {}
    records = there.fetch_materializations(dg.AssetKey(asset), limit=10_000).records
    for record in records:  # newest first
        event = record.asset_materialization
        if event is not None and record.partition_key not in latest:
            latest[record.partition_key] = float(str(event.metadata["seconds"].value))
    return sum(latest.values())

"""Tables and lines that the command line prints before and after a run."""

from __future__ import annotations

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entropylong_assets.audits.audit_tables import number
from entropylong_assets.orchestration.errors import few
from entropylong_assets.orchestration.run_selection import ExpectedJob
from entropylong_assets.project import Project, open_store
from entropylong_assets.report.proof import audit_coverage, gather_proof
from entropylong_assets.report.summary import gather
from entropylong_assets.report.tables import REPORT
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import one_line
from entropylong_assets.stages.corpus.listing import describe_passed_over
from entropylong_assets.stages.corpus.shards import ShardPlan, load_plan
from entropylong_assets.stages.samples.padding import padding_note
from entropylong_assets.stages.training_data.stage import TRAINING_DATASET
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import WHOLE

_FORMATS = {"count": "{:,}", "number": "{:.2f}", "share": "{:.1%}"}
_LISTED = 5
"""Names that a line lists before it counts the others."""


def print_missing_files(console: Console, plan: ShardPlan) -> None:
    """Print a line if files are missing."""
    if plan.missing:
        more = f" (and {len(plan.missing) - 1:,} more)" if len(plan.missing) > 1 else ""
        console.print(
            f"missing: {escape(one_line(plan.missing[0]))}{more}; shards keep their data",
            soft_wrap=True,
        )


def print_scan(console: Console, corpus: str, plan: ShardPlan) -> None:
    """What a scan found: shards, and new, changed and missing files, the first ones by name."""
    new = few(plan.new, _LISTED) or "none"
    console.print(f"{corpus}: {len(plan.shards):,} shards, new: {new}", soft_wrap=True)
    for what, files in (("changed", plan.changed), ("missing", plan.missing)):
        if files:
            console.print(
                f"{what}: {escape(few([*map(one_line, files)], _LISTED))}", soft_wrap=True
            )
    print_passed_over(console, plan)


def print_passed_over(console: Console, plan: ShardPlan) -> None:
    """Print a line per reason for which files are not read, and one on files read twice.

    Retired shards are counted as well.
    """
    if plan.retired or plan.retired_sources:
        sources = f", sources {', '.join(plan.retired_sources)}" if plan.retired_sources else ""
        console.print(
            f"retired: {len(plan.retired):,} shards{sources}; see `entropylong retire --list`",
            soft_wrap=True,
        )
    for reason, uris in plan.passed_over.items():
        line = describe_passed_over({reason: uris})
        console.print(f"passed over, {escape(line)}", soft_wrap=True)
    if plan.shared:
        more = ", …" if len(plan.shared) > 1 else ""
        console.print(
            f"read by several sources: {len(plan.shared):,} files "
            f"({escape(one_line(plan.shared[0]))}{more})",
            soft_wrap=True,
        )


def print_corpus(console: Console, project: Project, corpus: Settings) -> None:
    """Counts of a corpus, and its checks."""
    store = open_store(corpus)
    shards = [shard.key for shard in load_plan(store).shards]
    table = Table(show_header=False, title=f"Corpus {corpus.name}", title_justify="left")
    table.add_row("shards", f"{len(shards):,}")
    for stage in project.stages_of(corpus):
        made = store.shards(stage.tables)
        if stage.automation == "by_hand" and not made:
            continue
        rows = sum(
            store.require(stage.tables, shard).tables[stage.tables.main].rows for shard in made
        )
        table.add_row(f"{stage.name}: {stage.tables.main}", f"{rows:,}")
    table.add_row("checks", _checks(project, corpus))
    console.print(table)
    print_failed_checks(console, project, corpus)


def print_dataset(console: Console, project: Project, settings: Settings) -> None:
    """The funnel, the samples and the checks of a dataset, and its export."""
    store = open_store(settings)
    figures = gather(store, settings)
    table = Table(show_header=False, title=f"Dataset {settings.name}", title_justify="left")
    rows: list[tuple[str, str]] = [
        ("roots", f"{figures.roots:,}"),
        ("anchors", f"{figures.anchors:,}"),
        ("pairs (anchor, chunk)", f"{figures.pairs:,}, scored {figures.pairs_scored:,}"),
    ]
    for rule, count in figures.accepted_by.items():
        rate = figures.false_acceptance.get(rule)
        shown = f"; random contexts: {rate.as_text()}" if rate and rate.total else ""
        share = count / max(figures.pairs, 1)
        rows.append((f"accepted by {rule}", f"{count:,} ({share:.2%}){shown}"))
    if figures.mean_gain is not None:
        calibrated = figures.mean_calibrated_gain
        starred = "" if calibrated is None else f", mean ΔI* {calibrated:.2f}"
        rows.append(("accepted pairs", f"mean ΔI {figures.mean_gain:.2f}{starred}"))
    rows.append(("checks", _checks(project, settings)))
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    print_failed_checks(console, project, settings)
    console.print(_sample_table(figures.samples, settings.samples.tokens))
    if more := figures.n_samples - len(figures.samples):
        console.print(f"and {more:,} more samples; [bold]entropylong show[/] prints any of them")
    if note := padding_note(figures.n_samples, figures.tokens_by_role):
        console.print(f"{note}.", soft_wrap=True)
    print_export(console, settings)


def print_audits(console: Console, settings: Settings) -> None:
    """How many shards each audit covers, and what the audits have found."""
    store = open_store(settings)
    shards = store.shards(VERIFIED_DEPENDENCIES)
    table = Table(show_header=False, title=f"Audits of {settings.name}", title_justify="left")
    for audit in audit_coverage(store, shards):
        note = f"; {audit['note']}" if audit["note"] else ""
        table.add_row(audit["name"], f"{audit['made']:,} of {audit['of']:,} shards{note}")
    figures, charts = gather_proof(store, shards, settings)
    for row in charts["by_chance"]:
        table.add_row(
            f"{row['kind']} contexts accepted by {row['rule']}",
            f"{number(row, '{:.2%}')} of {row['total']:,}",
        )
    for name, value, kind in figures:
        if kind != "text":
            table.add_row(name, "–" if value is None else _FORMATS[kind].format(value))
    for row in charts["recipes"]:
        table.add_row(f"{row['recipe']}: {row['measure']}", number(row))
    console.print(table)


def print_export(console: Console, settings: Settings) -> None:
    """What the export of a dataset holds, where it is, and which shards it leaves out."""
    store = open_store(settings)
    if store.manifest(TRAINING_DATASET) is None:
        return
    summary = store.summary(TRAINING_DATASET)
    table = Table(show_header=False, title="Exported", title_justify="left")
    splits = ", ".join(f"{name} {n:,}" for name, n in summary.splits.items())
    for name, value in (
        ("formats", ", ".join(summary.formats)),
        ("samples", f"{splits}; {summary.tokens:,} tokens, {summary.bytes:,} bytes"),
        (
            "dependencies",
            f"{summary.dependencies:,} at {summary.anchors:,} anchors of "
            f"{summary.roots_scored:,} roots",
        ),
        ("shards", f"{summary.shards:,}, left out {summary.shards_left_out:,}"),
    ):
        table.add_row(name, escape(str(value)))
    console.print(table)
    destination = settings.export.destination or f"{store.dataset_uri}/exports"
    console.print(f"uri: {escape(f'{destination}/{summary.version}')}", soft_wrap=True)
    if store.manifest(REPORT) is not None:
        report = f"{store.dataset_uri}/{store.summary(REPORT).path}"
        console.print(f"report: {escape(report)}", soft_wrap=True)
    for row in store.read(TRAINING_DATASET, WHOLE, "left_out").iter_rows(named=True):
        console.print(f"left out: {escape(row['shard'])}: {escape(row['reason'])}", soft_wrap=True)


def _sample_table(samples: pl.DataFrame, n_tokens: int) -> Table:
    table = Table(
        title=f"Samples of {n_tokens:,} tokens, by the role of their tokens",
        title_justify="left",
    )
    table.add_column("sample", overflow="fold")
    for name in ("root", "verified", "negative", "padding", "deps"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in samples.iter_rows(named=True):
        shares = [
            f"{row[f'n_{role}'] / n_tokens:.1%}"
            for role in ("root", "verified", "negative", "padding")
        ]
        table.add_row(row["sample_id"], *shares, f"{row['dependencies']:,}")
    return table


def _checks(project: Project, settings: Settings) -> str:
    passed, evaluated = count_checks(project, settings)
    return f"{passed} of {evaluated} passed"


def count_checks(project: Project, settings: Settings) -> tuple[int, int]:
    """Checks passed and checks that ran, over all partitions of a corpus or dataset."""
    store = open_store(settings)
    outcomes = [
        outcome
        for stage in project.stages_of(settings)
        for shard in store.shards(stage.tables)
        for outcome in store.check_outcomes(stage.tables, shard).values()
    ]
    return sum(outcome.passed for outcome in outcomes), len(outcomes)


def print_failed_checks(console: Console, project: Project, settings: Settings) -> None:
    """A line for each check of a corpus or dataset that failed, with its shard."""
    store = open_store(settings)
    for stage in project.stages_of(settings):
        for shard in store.shards(stage.tables):
            for name, outcome in store.check_outcomes(stage.tables, shard).items():
                if not outcome.passed:
                    kind = "[red]failed[/]" if outcome.blocking else "[yellow]warning[/]"
                    console.print(
                        f"{kind}: check {name} of {stage.name}, {escape(shard)}: "
                        f"{outcome.faulty_rows:,} faulty rows",
                        soft_wrap=True,
                    )


def print_expected(console: Console, expected: ExpectedJob) -> None:
    """What a run would do in one job: shards by stage, and the reason of the first."""
    name = f"{expected.settings.name} {expected.job.name}"
    if not expected.reasons and not expected.skipped:
        console.print(f"{name}: up to date", soft_wrap=True)
    for stage, shards in expected.reasons.items():
        first, reason = next(iter(shards.items()))
        more = f" and {len(shards) - 1:,} more shards" if len(shards) > 1 else ""
        console.print(
            f"{name}: [bold]{stage.name}[/] runs on {escape(first)}{more} ({escape(reason)})",
            soft_wrap=True,
        )
    for stage, shards in expected.skipped.items():
        first, reason = next(iter(shards.items()))
        more = f" and {len(shards) - 1:,} more shards" if len(shards) > 1 else ""
        console.print(
            f"{name}: {stage.name} skips {escape(first)}{more} ({escape(reason)})", soft_wrap=True
        )

"""The commands that look ahead: `estimate` and `pilot`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from entropylong_assets.cli.common import DatasetName, SettingsFile, open_dataset, out, plain_errors

if TYPE_CHECKING:
    from entropylong_assets.report.corpus_sample import Sample
    from entropylong_assets.report.effort import Effort
    from entropylong_assets.report.estimate import Estimate, Figure, Size
    from entropylong_assets.report.pilot import JudgedPair, Pilot
    from entropylong_assets.settings.section import Settings


def add_commands(app: typer.Typer) -> None:
    app.command()(estimate)
    app.command()(pilot)


Minutes = Annotated[
    float,
    typer.Option(
        min=0,
        help="Limit of time, with the loading of the models. What was measured by then is reported "
        "with its intervals; more narrows them. 0: no limit.",
    ),
]


def estimate(
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="Estimate for another size: a number of documents, roots, samples, tokens or "
            "dependencies, e.g. '1e9 documents'. Or print the capacity plan, which needs no "
            "sources: 'paper', or figures that differ from it, e.g. roots=20000; repeatable."
        ),
    ] = None,
    hour_price: Annotated[
        float | None, typer.Option(min=0, help="Price of an hour of this machine or GPU.")
    ] = None,
    rows: Annotated[int, typer.Option(min=16, help="Number of rows to read.")] = 1024,
    roots: Annotated[int, typer.Option(min=2, help="Maximum number of roots to measure.")] = 24,
    minutes: Minutes = 2.0,
    rates: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --at paper: JSON file that benchmarks.verification_gpu or benchmarks.splice "
            "wrote on your GPU; repeatable."
        ),
    ] = None,
) -> None:
    """Estimate what a run takes: counts, storage, time and cost, each with its 95% interval.

    Samples rows from the whole range of the sources and runs the stages on them in a temporary
    folder. Stops after about --minutes, but not before 6 roots are scored and 2 verified. Writes
    nothing. With --at paper, prints the capacity plan at the paper's size (Markdown) from rates
    measured on an H100.
    """
    with plain_errors():
        from entropylong_assets.report.capacity import PlanError
        from entropylong_assets.report.estimate import make_estimate, parse_size

        wanted = at or []
        if any(size == "paper" or "=" in size for size in wanted):
            _print_plan(wanted, hour_price, rates or [])
            return
        if rates:
            raise PlanError("--rates: only the capacity plan takes rates; add --at paper")
        size = parse_size(" ".join(wanted)) if wanted else None
        settings = open_dataset(settings_file, dataset)
        from entropylong_assets.report.effort import Effort

        sample = _sample(
            settings,
            Effort(rows=rows, roots=roots, root_tokens=1000 * roots, minutes=minutes or None),
            size.value if size and size.unit == "documents" else None,
        )
        estimated = make_estimate(sample, size, hour_price)
    _print_estimate(settings.name, sample, estimated, size)


def _sample(settings: Settings, effort: Effort, documents: float | None = None) -> Sample:
    """Take a sample. Progress goes to standard error."""
    from entropylong_assets.cli.sample_progress import SampleProgress
    from entropylong_assets.orchestration.scanning import plan_without_saving
    from entropylong_assets.report.corpus_sample import take_sample
    from entropylong_assets.stages.corpus.shards import require_shards

    plan = plan_without_saving(settings.corpus)
    require_shards(settings.corpus, plan)
    with SampleProgress(effort.minutes) as progress:
        return take_sample(settings, plan, effort, progress.begin, documents, progress.observe)


def pilot(
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Wished number of samples, for which roots.number is suggested."),
    ] = None,
    roots: Annotated[int, typer.Option(min=2, help="Number of roots to verify.")] = 8,
    tokens: Annotated[
        int,
        typer.Option(
            min=1000,
            help="Maximum number of tokens in the passes of candidates and controls. "
            "Evidence spans take further passes.",
        ),
    ] = 60_000,
    show: Annotated[
        int, typer.Option(min=0, help="Number of pairs to show, of accepted and of rejected ones.")
    ] = 3,
    minutes: Minutes = 3.0,
) -> None:
    """Verify a few roots, show accepted and rejected pairs, and suggest settings.

    Runs every stage up to the verification on a sample of the sources, in a temporary folder. Stops
    after about --minutes, but not before 6 roots are scored and 2 verified. A corpus that is
    embedded already is searched as it is. Writes nothing to the corpus or the dataset.
    """
    with plain_errors():
        settings = open_dataset(settings_file, dataset)
        from entropylong_assets.report.effort import Effort
        from entropylong_assets.report.pilot import make_pilot
        from entropylong_assets.report.verified_sample import Budget
        from entropylong_assets.stages.entropy.model import load_tokenizer

        effort = Effort(
            roots=roots,
            root_tokens=10**9,
            verified=Budget(tokens, None),
            minutes=minutes or None,
        )
        sample = _sample(settings, effort)
        result = make_pilot(sample, load_tokenizer(settings.scoring), show, samples)
    _print_pilot(result, sample)
    _print_cut(sample)


def _print_pilot(pilot: Pilot, sample: Sample) -> None:
    """Plain lines, which a pipe takes as well as a terminal."""
    for title, pairs in (("Accepted", pilot.accepted), ("Rejected", pilot.rejected)):
        for number, pair in enumerate(pairs, 1):
            out.print(f"{title} {number}", style="bold")
            for line in _pair_lines(pair):
                out.print(line, soft_wrap=True)
            out.print()
    out.print("Funnel", style="bold")
    for name, count, note in pilot.funnel:
        out.print(f"  {name:<24} {count:>10,}  {escape(note)}".rstrip(), soft_wrap=True)
    if pilot.empty:
        out.print(f"[yellow]Nothing accepted:[/] {escape(pilot.empty)}.", soft_wrap=True)
    if pilot.suggestions:
        out.print()
        n = sample.verified.verified_roots
        out.print(f"Suggested settings, from {n:,} roots", style="bold")
    for suggestion in pilot.suggestions:
        out.print(f"  {suggestion.setting}: [bold]{escape(suggestion.value)}[/]", soft_wrap=True)
        out.print(f"    {escape(suggestion.basis)}", soft_wrap=True)


def _pair_lines(pair: JudgedPair) -> list[str]:
    calibrated = "" if pair.calibrated_gain is None else f", ΔI* {pair.calibrated_gain:.2f}"
    kind = "" if pair.kind is None else f", {pair.kind.replace('_', ' ')}"
    marked = f"[[{pair.evidence}]]" if pair.evidence else ""
    context = f"{pair.context_before}{marked}{pair.context_after}".strip()
    return [
        escape(line)
        for line in (
            f"  entropy {pair.entropy:.2f} → {pair.entropy_context:.2f} nats, ΔI "
            f"{pair.gain:.2f}{calibrated}; {pair.verdict.replace('_', ' ')}{kind}",
            f"  root {pair.root_id[:8]}: …{_one_line(pair.before)}"
            f"»{_one_line(pair.token)}«{_one_line(pair.after)}…",
            f"  context {pair.chunk_id}: {_one_line(context)}",
        )
    ]


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ")


def _print_plan(figures: list[str], hour_price: float | None, rates: list[Path]) -> None:
    from entropylong_assets.report.capacity import plan_capacity, workload_of
    from entropylong_assets.report.capacity_text import markdown
    from entropylong_assets.report.verification_costs import load_rates

    workload = workload_of([figure for figure in figures if figure != "paper"])
    print(markdown(plan_capacity(workload, load_rates(rates)), hour_price), end="")


def _print_estimate(name: str, sample: Sample, estimated: Estimate, size: Size | None) -> None:
    at = f", at {size.value:,.0f} {size.unit}" if size else ""
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, title=f"Dataset {name}{at}", title_justify="left"
    )
    table.add_column("")
    for column in ("expected", "95% from", "to"):
        table.add_column(column, justify="right")
    dependencies = estimated.figure("verified dependencies").value
    for figure in (in_suitable_unit(figure, dependencies) for figure in estimated.figures):
        table.add_row(figure.name, *_shown(figure))
    out.print(table)
    chosen, sources = sample.chosen_rows, len(sample.sources)
    read = sum(len(source.chosen) for source in sample.sources)
    out.print(
        f"From {chosen:,} rows of {read:,} of {len(sample.shard_rows):,} shards in {sources:,} "
        f"sources, {sample.pool_documents:,} documents embedded, {len(sample.measured.tokens):,} "
        f"roots measured, {sample.verified.total('contexts'):,} contexts verified. Hours are of "
        f"this machine ({sample.device}): {sample.rates['chunks']:,.0f} chunks/s, "
        f"{sample.rates['anchors']:,.0f} anchors/s, {sample.rates['tokens']:,.0f} tokens/s.",
        soft_wrap=True,
    )
    _print_cut(sample)
    for warning in estimated.warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}.", soft_wrap=True)


def in_suitable_unit(figure: Figure, dependencies: float) -> Figure:
    """Return a figure per million dependencies per thousand or per dependency if there are few.

    dependencies: expected number.
    """
    million = " per million dependencies"
    if not figure.name.endswith(million) or dependencies >= 1e6:
        return figure
    per, divisor = (
        (" per thousand dependencies", 1e3) if dependencies >= 1e3 else (" per dependency", 1e6)
    )
    return replace(
        figure,
        name=figure.name.removesuffix(million) + per,
        value=figure.value / divisor,
        low=figure.low / divisor,
        high=figure.high / divisor,
    )


def _print_cut(sample: Sample) -> None:
    if sample.cut:
        out.print(f"[yellow]{escape(sample.cut)}.[/]", soft_wrap=True)


def _shown(figure: Figure) -> list[str]:
    return [_amount(value, figure.unit) for value in (figure.value, figure.low, figure.high)]


def _amount(value: float, unit: str) -> str:
    """A number as people read it: three digits are enough for an estimate."""
    if value != value:  # not a number: there is nothing to divide by
        return "–"
    if unit == "bytes":
        for limit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
            if value >= limit:
                return f"{value / limit:.3g} {name}"
        return f"{value / 1e3:.3g} kB"
    if unit == "hours":
        if value < 1 / 60:
            return f"{value * 3600:.2g} s"
        return f"{value * 60:.3g} min" if value < 1 else f"{_rounded(value)} h"
    return _rounded(value)


def _rounded(value: float) -> str:
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}"

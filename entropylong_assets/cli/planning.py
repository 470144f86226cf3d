"""Commands that estimate the cost of a run: `plan` and `estimate`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from entropylong_assets.cli.common import DatasetName, SettingsFile, open_dataset, out, plain_errors


def add_commands(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(estimate)


def plan(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            help="Figures of your workload, e.g. chunks=50000000 roots=20000 "
            "sample_tokens=800000000 embedder=minilm."
        ),
    ] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0, help="Price of one GPU hour, in any currency.")
    ] = None,
) -> None:
    """Print a capacity plan in Markdown: GPU hours, storage and limits, from measured rates.

    Without figures, the workload is FineWeb-Edu at the paper's size.
    """
    with plain_errors():
        from entropylong_assets.report.capacity import plan_capacity, workload_of
        from entropylong_assets.report.capacity_text import markdown

        text = markdown(plan_capacity(workload_of(figures or [])), gpu_hour_price)
    print(text, end="")


def estimate(settings_file: SettingsFile = None, dataset: DatasetName = None) -> None:
    """Estimate the cost of a run over the sources on this machine. Writes nothing."""
    with plain_errors():
        settings = open_dataset(settings_file, dataset)
        from entropylong_assets.report.estimate import estimate as estimated
        from entropylong_assets.stages.corpus.shards import plan_shards, require_shards

        shards = plan_shards(settings.corpus)
        require_shards(settings.corpus, shards)
        out.print(f"{len(shards.shards)} shards; sampling documents and timing the models …")
        expected = estimated(settings, shards)
    table = Table(show_header=False, title="A run over these sources", title_justify="left")
    for name, value in (
        ("rows", f"{expected.rows:,}"),
        ("documents", f"{expected.documents:,} in {expected.chunks:,} chunks"),
        ("roots", f"{expected.roots:,}"),
        ("anchors", f"{expected.anchors:,}"),
        ("pairs (anchor, chunk)", f"{expected.pairs:,}"),
        ("forward passes", f"{expected.forward_passes:,}"),
        ("forward tokens", f"{expected.forward_tokens:,}"),
        (
            "embedding",
            f"{expected.embedding_hours:,.2f} h at {expected.chunks_per_second:,.0f} chunks/s",
        ),
        (
            "scoring",
            f"{expected.scoring_hours:,.2f} h at {expected.tokens_per_second:,.0f} tokens/s",
        ),
    ):
        table.add_row(name, value)
    out.print(table)
    out.print(
        f"From {expected.sampled_documents:,} rows and {expected.sampled_roots} scored roots, "
        "timed here. It assumes 0.54 forward passes per pair, as measured on documentation."
    )

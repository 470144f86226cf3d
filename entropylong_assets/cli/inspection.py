"""Commands that show results: `show`, `compare`, `report`, `serve`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from entropylong_assets.cli.common import (
    DatasetName,
    SettingsFile,
    open_dataset,
    open_project,
    out,
    plain_errors,
)

if TYPE_CHECKING:
    from entropylong_assets.report.show import ShownDependency


def add_commands(app: typer.Typer) -> None:
    app.command()(show)
    app.command()(compare)
    app.command()(report)
    app.command()(serve)


def show(
    sample: Annotated[str, typer.Argument(help="Id of a sample, e.g. numpy-docs-00000-00000.")],
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    strongest: Annotated[
        int, typer.Option(help="Number of dependencies to show in full, largest gains first.")
    ] = 3,
) -> None:
    """Show a sample's segments and its strongest dependencies as readable text."""
    with plain_errors():
        settings = open_dataset(settings_file, dataset)
        from entropylong_assets.project import open_store
        from entropylong_assets.report.show import show_sample
        from entropylong_assets.stages.entropy.model import load_tokenizer

        load = partial(load_tokenizer, settings.scoring)
        shown = show_sample(open_store(settings), load, sample, strongest)
    table = Table(
        title=f"{sample}: segments",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("role", "start", "end", "tokens", "root", "document", "source"):
        if name in ("start", "end", "tokens"):
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, no_wrap=name == "role", overflow="fold")
    for row in shown.segments.iter_rows(named=True):
        table.add_row(
            row["role"].replace("_", " "),
            f"{row['start']:,}",
            f"{row['end']:,}",
            f"{row['end'] - row['start']:,}",
            (row["root_id"] or "")[:8],
            (row["doc_id"] or "")[:8],
            row["source"] or "",
        )
    out.print(table)
    if shown.padding:
        out.print(f"{shown.padding}.\n", soft_wrap=True)
    n = shown.n_dependencies
    which = f"; the strongest {len(shown.dependencies)}:" if shown.dependencies else ""
    out.print(f"{n:,} verified {'dependency' if n == 1 else 'dependencies'}{which}")
    if shown.dependencies:
        out.print(legend(shown.dependencies), markup=False, soft_wrap=True)
    for d in shown.dependencies:
        gains = f"ΔI {d.gain:.2f}" + (
            "" if d.calibrated_gain is None else f", ΔI* {d.calibrated_gain:.2f}"
        )
        kind = "" if d.kind is None else f"{d.kind.replace('_', ' ')}, "
        out.print(
            Panel(
                dependency_text(d),
                title=f"entropy {d.entropy:.2f} → {d.entropy_context:.2f} nats, {gains}",
                title_align="left",
                subtitle=f"{kind}{d.distance:,} tokens apart",
                subtitle_align="left",
            )
        )


def legend(dependencies: Sequence[ShownDependency]) -> str:
    anchor = "»anchor«: the token of the root that the context makes easier to predict"
    evidence = "\n[[evidence]]: the sentences of the context that are enough for that"
    return anchor + (evidence if any(d.evidence for d in dependencies) else "")


def dependency_text(d: ShownDependency) -> Text:
    """Root and context, with signs around anchor and evidence that a pipe takes as well.

    Blanks before either are outside the signs, and a line break inside the anchor is a sign itself.
    """
    blanks, token = _without_blanks(d.token)
    breaks = "\n" * (len(token) - len(token.rstrip("\n")))
    gap, evidence = _without_blanks(d.evidence)
    marked: list[str | tuple[str, str]] = []
    if evidence:
        marked = [gap, "[[", (evidence, "bold underline"), "]]"]
    return Text.assemble(
        (f"root {d.root_id[:8]}:", "dim"),
        f" …{d.before.lstrip()}{blanks}»",
        (token.replace("\n", "⏎"), "bold reverse"),
        f"«{breaks}{d.after.rstrip()}…\n\n",
        (f"context {d.chunk_id}:", "dim"),
        f" {d.context_before.lstrip()}",
        *marked,
        d.context_after.rstrip(),
    )


def _without_blanks(text: str) -> tuple[str, str]:
    """White space before a text, and the text; white space alone is the text."""
    stripped = text.lstrip()
    return (text[: len(text) - len(stripped)], stripped) if stripped else ("", text)


def compare(
    a: Annotated[str, typer.Argument(help="Name of a dataset.")],
    b: Annotated[str, typer.Argument(help="Name of the other dataset.")],
    settings_file: SettingsFile = None,
) -> None:
    """Compare two datasets: settings, anchors, accepted pairs and their overlap, samples."""
    with plain_errors():
        project = open_project(settings_file)
        from entropylong_assets.project import open_store
        from entropylong_assets.report.comparison import compare_datasets
        from entropylong_assets.report.run import open_dataset as open_source

        sources = [
            open_source(settings, open_store(settings))
            for settings in (project.find_dataset(a), project.find_dataset(b))
        ]
        compared = compare_datasets(*sources)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in (a, b):
        table.add_column(name, justify="right")
    for name, value_a, value_b in compared.rows():
        table.add_row(name, escape(value_a), escape(value_b))
    out.print(table)
    for line in compared.overlap_lines():
        out.print(escape(line))


def report(
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    against: Annotated[
        str | None, typer.Option(help="Name of another dataset, shown beside this one.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--out", help="File to write. Default: report.html in the dataset's folder."),
    ] = None,
) -> None:
    """Write the report: one HTML file that needs no network."""
    with plain_errors():
        project = open_project(settings_file)
        from entropylong_assets.report.page import save_report

        other = project.find_dataset(against) if against else None
        written = save_report(project.find_dataset(dataset), file, other)
    out.print(f"wrote {escape(written)}", soft_wrap=True)


def serve(
    settings_file: SettingsFile = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1. Default: 3080.")
    ] = None,
) -> None:
    """Serve reports and exports to a browser on this machine, until Ctrl-C.

    The links to reports in Dagster's UI open while this runs.
    """
    with plain_errors():
        project = open_project(settings_file)
        from entropylong_assets.report.serving import HOST, PORT, make_server

        server = make_server(project.datasets, port or PORT)
    out.print(f"serving http://{HOST}:{server.server_port}/ until Ctrl-C", soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt), server:
        server.serve_forever()

"""`entropylong`: the pipeline from the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

if TYPE_CHECKING:
    from entropylong_assets.settings.model import Settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turns a corpus of short documents into verified long-context training data.",
)
out = Console(highlight=False)

SettingsFile = Annotated[
    str | None,
    typer.Option("--settings", "-s", help="YAML file; else ENTROPYLONG_SETTINGS or _PROFILE."),
]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake, or a store out of reach, ends with its one line and exit code 2."""
    try:
        yield
    except Exception as error:
        from entropylong_assets.orchestration.errors import is_ours, is_transient, line

        if not (is_ours(error) or isinstance(error, OSError) or is_transient(error)):
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[red]error:[/] {escape(line(error))}"
        )
        raise typer.Exit(2) from None


def _settings(path: str | None) -> Settings:
    from entropylong_assets.settings.model import load_settings

    return load_settings(path)


@app.command()
def demo(settings_file: SettingsFile = None) -> None:
    """Runs the whole pipeline on real text and real models, and prints what came of it.

    Without settings it takes the profile `quickstart`. What is up to date is not run again.
    """
    if not settings_file:
        os.environ.setdefault("ENTROPYLONG_PROFILE", "quickstart")
    run(settings_file)


@app.command()
def run(settings_file: SettingsFile = None) -> None:
    """Registers new shards and runs every stage that is not up to date, here and now.

    Stops at the first shard that fails, with exit code 2. Needs no daemon.
    """
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.cli.output import RunBars, print_export, print_figures
        from entropylong_assets.orchestration.local_run import (
            export_is_current,
            instance,
            register_shards,
            run_export,
            run_pipeline,
        )
        from entropylong_assets.storage.tables import WHOLE

        out.print(
            f"[bold]EntropyLong[/] profile {settings.profile}, data under {settings.data_uri}, "
            f"model {settings.scoring.model}"
        )
        with instance() as there:
            plan = register_shards(settings, there)
            out.print(f"{len(plan.shards)} shards, {len(plan.new)} of them new")
            with RunBars(out, len(plan.shards)) as bars:
                runs = run_pipeline(settings, plan, there, bars.start, bars.end)
                bars.start("export", WHOLE)
                exported = None
                if not export_is_current(settings, there):
                    exported = run_export(settings, there)
                    runs += 1
                bars.end("export", WHOLE, exported is not None)
            print_figures(out, settings, plan, there)
            if exported is not None:
                print_export(out, exported)
        if runs == 0:
            out.print("Nothing had changed: no run was needed.")
        out.print("Look at it: [bold]make ui[/], then http://localhost:3000")


@app.command()
def scan(settings_file: SettingsFile = None) -> None:
    """Looks at the sources and registers the shards of all new files as partitions."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.orchestration.local_run import instance, register_shards

        with instance() as there:
            plan = register_shards(settings, there)
    out.print(f"{len(plan.shards)} shards, new: {', '.join(plan.new) or 'none'}")
    for what, files in (("changed", plan.changed), ("gone", plan.gone)):
        for file in files:
            out.print(f"{what}: {escape(file)}")


@app.command()
def plan(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            help="Your own figures, e.g. chunks=50000000 roots=20000 sample_tokens=800000000 "
            "embedder=minilm."
        ),
    ] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0, help="What a GPU hour costs you, in any currency.")
    ] = None,
) -> None:
    """The capacity plan: GPU hours, storage and limits at any size, from measured rates.

    Without figures it is FineWeb-Edu at the paper's size. Prints Markdown.
    """
    with _plain_errors():
        from entropylong_assets.report.capacity import plan_capacity, workload_of
        from entropylong_assets.report.capacity_text import markdown

        text = markdown(plan_capacity(workload_of(figures or [])), gpu_hour_price)
    print(text, end="")


@app.command()
def estimate(settings_file: SettingsFile = None) -> None:
    """Estimates what a run over the sources would cost on this machine. Writes nothing."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.report.estimate import estimate as estimated
        from entropylong_assets.stages.corpus.shards import plan_shards

        shards = plan_shards(settings.corpus)
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
        f"timed here. Pairs share forward passes as they did on documentation (0.54 a pair)."
    )


@app.command()
def show(
    sample: Annotated[str, typer.Argument(help="Id of a sample, e.g. python-topics-00000-00000.")],
    settings_file: SettingsFile = None,
    strongest: Annotated[int, typer.Option(help="Dependencies shown in full.")] = 3,
) -> None:
    """Shows a sample's segments and its strongest dependencies as readable text."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.report.show import show_sample
        from entropylong_assets.stages.entropy.model import load_tokenizer
        from entropylong_assets.storage.tables import TableStore

        store = TableStore(settings.data_uri)
        shown = show_sample(store, load_tokenizer(settings.scoring), sample, strongest)
    table = Table(
        title=f"{sample}: segments", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for name in ("role", "start", "end", "tokens", "root", "document", "source"):
        table.add_column(name, justify="right" if name in ("start", "end", "tokens") else "left")
    for row in shown.segments.iter_rows(named=True):
        table.add_row(
            row["role"],
            f"{row['start']:,}",
            f"{row['end']:,}",
            f"{row['end'] - row['start']:,}",
            (row["root_id"] or "")[:8],
            (row["doc_id"] or "")[:8],
            row["source"] or "",
        )
    out.print(table)
    out.print(f"{shown.n_dependencies} verified dependencies; the strongest:")
    for d in shown.dependencies:
        gains = f"ΔI {d.gain:.2f}" + (
            "" if d.calibrated_gain is None else f", ΔI* {d.calibrated_gain:.2f}"
        )
        out.print(
            Panel(
                f"[dim]root {d.root_id[:8]}:[/] …{escape(d.before)}[bold reverse]{escape(d.token)}"
                f"[/]{escape(d.after)}…\n\n"
                f"[dim]context {d.chunk_id}:[/] {escape(d.context.strip())}",
                title=f"entropy {d.entropy:.2f} → {d.entropy_context:.2f} nats, {gains}, "
                f"{d.distance:,} tokens apart",
                title_align="left",
            )
        )


@app.command()
def ablate(settings_file: SettingsFile = None) -> None:
    """What α, ε, K, order and verification change, from stored scores: no forward pass."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.audits.ablation import ablate as ablated
        from entropylong_assets.audits.ablation import read_scores
        from entropylong_assets.audits.ablation_output import print_ablation, save
        from entropylong_assets.report.run import open_run

        made = open_run(settings)  # with the settings that the scores were made with
        table = ablated(read_scores(made.store, made.shards), made.settings)
        print_ablation(out, table)
        for file in save(made.store, table):
            out.print(f"wrote {escape(file)}", soft_wrap=True)


@app.command()
def audit(settings_file: SettingsFile = None) -> None:
    """Proof on a sample of every verified shard: chance, a second model, the rival recipes."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.orchestration.audit_run import run_audits
        from entropylong_assets.orchestration.local_run import instance

        with instance() as there:
            runs = run_audits(
                settings,
                there,
                lambda shard, made: out.print(f"{shard}: {'audited' if made else 'is current'}"),
            )
    out.print(f"{runs} runs" if runs else "Nothing had changed: no run was needed.")


@app.command()
def evidence(
    settings_file: SettingsFile = None,
    file: Annotated[str, typer.Option("--out", help="File to write.")] = "docs/evidence.md",
) -> None:
    """Runs pipeline, audits and planted truth where they are not current; writes the evidence."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.orchestration.evidence_run import make_evidence
        from entropylong_assets.orchestration.local_run import instance

        with instance() as there:
            make_evidence(settings, there, file, lambda line: out.print(escape(line)))
    out.print(f"wrote {escape(file)}", soft_wrap=True)


@app.command()
def report(
    settings_file: SettingsFile = None,
    against: Annotated[
        str | None, typer.Option(help="URI of another run's data, to compare with.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--out", help="File to write; else report.html in the data.")
    ] = None,
) -> None:
    """Writes the report: one HTML file that needs no network."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.report.page import save_report

        written = save_report(settings, file, against)
    out.print(f"wrote {escape(written)}", soft_wrap=True)


@app.command()
def export(settings_file: SettingsFile = None) -> None:
    """Exports all healthy shards for trainers, with dataset card, manifest and report."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.cli.output import print_export
        from entropylong_assets.orchestration.local_run import instance, run_export

        with instance() as there:
            print_export(out, run_export(settings, there))


@app.command()
def verify_export(
    uri: Annotated[str, typer.Argument(help="Folder or URI of one export.")],
) -> None:
    """Reads every file of an export again; exit code 1 if one is not as it was written."""
    with _plain_errors():
        from entropylong_assets.stages.training_data.verify import verify_export as verify

        found = verify(uri)
    for fault in found.faults:
        out.print(f"[red]{escape(fault)}[/]", soft_wrap=True)
    out.print(f"{found.files:,} files, {found.bytes:,} bytes, {len(found.faults)} faults")
    raise typer.Exit(1 if found.faults else 0)


@app.command()
def doctor(settings_file: SettingsFile = None) -> None:
    """Looks for what stands in the way of a run here; exit code 1 if there is a fault."""
    with _plain_errors():
        settings = _settings(settings_file)
        from entropylong_assets.orchestration.doctor import examine

        colours = {"ok": "green", "warning": "yellow", "fault": "red"}
        faults = 0
        for found in examine(settings):
            faults += found.verdict == "fault"
            out.print(
                f"[{colours[found.verdict]}]{found.verdict:8}[/]{found.subject:16} "
                f"{escape(found.told)}",
                soft_wrap=True,
            )
    raise typer.Exit(1 if faults else 0)


if __name__ == "__main__":
    app()

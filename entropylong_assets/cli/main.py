"""`entropylong`: the pipeline from the command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from entropylong_assets.cli import inspection, planning, proof, removals, trial
from entropylong_assets.cli import settings as settings_commands
from entropylong_assets.cli import status as status_commands
from entropylong_assets.cli.common import (
    DatasetName,
    SettingsFile,
    open_project,
    out,
    plain_errors,
    resumable,
)

if TYPE_CHECKING:
    from entropylong_assets.orchestration.run_selection import Selection
    from entropylong_assets.project import Project

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"entropylong {version('entropylong-assets')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Turn a corpus of short documents into verified long-context training data."""


@app.command()
def demo(settings_file: SettingsFile = None) -> None:
    """Run the whole pipeline on real text and real models, and print the results.

    Without settings, it uses the profile `quickstart`. Partitions that are up to date are not made
    again.
    """
    if not settings_file:
        os.environ.setdefault("ENTROPYLONG_PROFILE", "quickstart")
    run(settings_file)


@app.command()
def run(
    settings_file: SettingsFile = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option("--dataset", "-d", help="Only this dataset and its corpus; repeatable."),
    ] = None,
    shards: Annotated[
        list[str] | None, typer.Option("--shard", help="Only this shard; repeatable.")
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="First stage to run, e.g. entropy_scores.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Last stage to run, e.g. verified_dependencies.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and why, and write nothing.")
    ] = False,
) -> None:
    """Register new shards and run every stage that is not up to date, in this process.

    A shard that fails is left out of what follows, the others go on, and the exit code is 2. Shards
    whose source files are missing keep their data and stop nothing. Ctrl-C or SIGTERM stops within
    10 seconds (exit code 130 or 143); the same command resumes. Needs no daemon.
    """
    with resumable():
        project = open_project(settings_file)
        from entropylong_assets.orchestration.run_selection import Selection

        selection = Selection(
            tuple(datasets) if datasets else None, tuple(shards or ()), first, last
        )
        for settings in project.corpora.values():
            selection.stages(project, settings)  # an unknown stage is refused at once
        if dry_run:
            _print_expected(project, selection)
        else:
            _run(project, selection)


def _run(project: Project, selection: Selection) -> None:
    from entropylong_assets.cli.output import (
        print_corpus,
        print_dataset,
        print_missing_files,
        print_passed_over,
    )
    from entropylong_assets.cli.run_progress import RunProgress
    from entropylong_assets.orchestration.local_run import (
        open_instance,
        register_shards,
        run_project,
    )
    from entropylong_assets.orchestration.runner import RunFailuresError

    corpora, chosen = selection.owners(project)
    out.print(f"[bold]EntropyLong[/] data under {escape(project.data_uri)}", soft_wrap=True)
    for settings in chosen:
        out.print(
            f"dataset {settings.name} over corpus {settings.corpus.name}, "
            f"model {escape(settings.scoring.model)}",
            soft_wrap=True,
        )
    failures: RunFailuresError | None = None
    runs = 0
    with open_instance(project) as instance:
        for corpus in corpora:
            plan = register_shards(corpus, instance, accept_changes=True)
            out.print(
                f"corpus {corpus.name}: {len(plan.shards)} shards, {len(plan.new)} of them new"
            )
            print_missing_files(out, plan)
            print_passed_over(out, plan)
        with RunProgress() as progress:
            try:
                runs = run_project(project, instance, watcher=progress.watcher, selection=selection)
            except RunFailuresError as error:
                failures = error
        progress.print_missing()
        for corpus in corpora:
            print_corpus(out, project, corpus)
        for settings in chosen:
            print_dataset(out, project, settings)
    if failures:
        raise failures
    if runs == 0:
        out.print("Everything is up to date: no run was needed.")
    out.print(
        "Look at it: [bold]make ui[/] in a clone, else "
        "[bold]dg dev -m entropylong_assets.definitions[/]; then http://localhost:3000",
        soft_wrap=True,
    )


def _print_expected(project: Project, selection: Selection) -> None:
    """Print what a run would do. Scans the sources, but registers nothing."""
    from entropylong_assets.cli.output import print_expected, print_passed_over
    from entropylong_assets.orchestration.run_selection import expected_jobs
    from entropylong_assets.project import open_store
    from entropylong_assets.stages.corpus.errors import one_line
    from entropylong_assets.stages.corpus.fields_check import require_fields
    from entropylong_assets.stages.corpus.shards import load_plan, replan, require_shards

    plans = {}
    for corpus in selection.owners(project)[0]:
        before = load_plan(open_store(corpus))
        plan = replan(corpus, before)
        require_shards(corpus, plan)
        require_fields(corpus, plan)
        plans[corpus.name] = plan
        out.print(f"corpus {corpus.name}: {len(plan.shards)} shards, {len(plan.new)} of them new")
        for what, files in (("changed", plan.changed), ("missing", plan.missing)):
            for file in files:
                out.print(f"{what}: {escape(one_line(file))}", soft_wrap=True)
        print_passed_over(out, plan)
    runs = 0
    for expected in expected_jobs(project, plans, selection):
        print_expected(out, expected)
        runs += len(expected.shards)
    out.print(f"{runs:,} runs expected; nothing was run or written")


@app.command()
def scan(settings_file: SettingsFile = None) -> None:
    """Scan the sources and register the shards of all new files as partitions.

    Also lists files that have changed or are missing, and counts the files that are not read, by
    reason.
    """
    with plain_errors():
        project = open_project(settings_file)
        from entropylong_assets.cli.output import print_scan
        from entropylong_assets.orchestration.local_run import open_instance, register_shards

        with open_instance(project) as instance:
            for corpus in project.corpora.values():
                print_scan(out, corpus.name, register_shards(corpus, instance))


@app.command()
def export(settings_file: SettingsFile = None, dataset: DatasetName = None) -> None:
    """Export all eligible shards for trainers again, with dataset card, manifest and report."""
    with resumable():
        project = open_project(settings_file)
        settings = project.find_dataset(dataset)
        from entropylong_assets.cli.output import print_export
        from entropylong_assets.cli.run_progress import RunProgress
        from entropylong_assets.orchestration.local_run import open_instance, run_export

        with open_instance(project) as instance, RunProgress() as progress:
            run_export(project, settings, instance, progress.watcher)
        print_export(out, settings)


@app.command()
def verify_export(
    uri: Annotated[str, typer.Argument(help="Folder or URI of one export.")],
) -> None:
    """Check that every file of an export has the bytes that were written; exit code 1 if not."""
    with plain_errors():
        from entropylong_assets.stages.training_data.verify import verify_export as verify

        result = verify(uri)
    for fault in result.faults:
        out.print(f"[red]{escape(fault)}[/]", soft_wrap=True)
    out.print(f"{result.files:,} files, {result.bytes:,} bytes, {len(result.faults)} faults")
    raise typer.Exit(1 if result.faults else 0)


@app.command()
def retokenize(
    uri: Annotated[str, typer.Argument(help="Folder or URI of an export with the format jsonl.")],
    tokenizer: Annotated[
        str,
        typer.Option(help="Model whose tokenizer is used: hub id, folder, GGUF file or pkg://."),
    ],
    tokens: Annotated[int, typer.Option(min=16, help="Exact length of a sample.")],
    out_folder: Annotated[
        str, typer.Option("--out", help="Folder or URI; the new export is a folder in it.")
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="Format to write; repeatable. Default: the formats of the export."
        ),
    ] = None,
) -> None:
    """Pack an export with the format jsonl again, for another model's tokenizer.

    No context is cut. What does not fit is dropped, and counted here and in the manifest. The gains
    are still those that the first model measured.
    """
    with plain_errors():
        from entropylong_assets.project import make_project
        from entropylong_assets.stages.training_data import retokenization

        wanted = formats or retokenization.formats_of(uri)
        chosen = retokenization.export_settings_of(uri) | {"formats": list(wanted)}
        settings = make_project({"export": chosen}).dataset
        export = retokenization.retokenize(uri, tokenizer, tokens, settings, out_folder)
    repacked = export.manifest["repacked"]
    for name, read in repacked["read"].items():
        packed = repacked["packed"].get(name, 0)
        out.print(f"{name.replace('_', ' '):16} {read:>12,} read {packed:>12,} packed")
    for what in ("roots", "contexts", "dependencies"):
        for reason, n in repacked[f"{what}_dropped"].items():
            out.print(f"[yellow]{n:,} {what} dropped: {reason}[/]")
    out.print(export.uri, soft_wrap=True)


@app.command()
def doctor(settings_file: SettingsFile = None) -> None:
    """Check instance, models, sources and tables for faults; exit code 1 if there is one."""
    with plain_errors():
        project = open_project(settings_file)
        from entropylong_assets.orchestration.doctor import examine

        colours = {"ok": "green", "warning": "yellow", "fault": "red"}
        faults = 0
        for finding in examine(project):
            faults += finding.verdict == "fault"
            out.print(
                f"[{colours[finding.verdict]}]{finding.verdict:8}[/]{finding.subject:24} "
                f"{escape(finding.message)}",
                soft_wrap=True,
            )
    raise typer.Exit(1 if faults else 0)


planning.add_commands(app)
settings_commands.add_commands(app)
status_commands.add_commands(app)
inspection.add_commands(app)
removals.add_commands(app)
proof.add_commands(app)
trial.add_commands(app)


if __name__ == "__main__":
    app()

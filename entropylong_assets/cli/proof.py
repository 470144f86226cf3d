"""Commands that measure what verification does: `ablate`, `audit`, `evidence`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from entropylong_assets.cli.common import (
    DatasetName,
    SettingsFile,
    open_dataset,
    open_project,
    out,
    plain_errors,
    resumable,
)


def add_commands(app: typer.Typer) -> None:
    app.command()(ablate)
    app.command()(audit)
    app.command()(evidence)


def ablate(settings_file: SettingsFile = None, dataset: DatasetName = None) -> None:
    """Show the effect of other α, ε, K, orders and rules, from stored scores: no forward pass."""
    with plain_errors():
        settings = open_dataset(settings_file, dataset)
        from entropylong_assets.audits.ablation import ablate as ablated
        from entropylong_assets.audits.ablation import read_scores
        from entropylong_assets.audits.ablation_output import print_ablation, save
        from entropylong_assets.project import open_store
        from entropylong_assets.report.run import open_dataset as open_source

        source = open_source(settings, open_store(settings))
        # The settings under which the scores were made.
        table = ablated(read_scores(source.store, source.shards), source.settings)
        print_ablation(out, table)
        for file in save(source.store, table):
            out.print(f"wrote {escape(file)}", soft_wrap=True)


def audit(settings_file: SettingsFile = None, dataset: DatasetName = None) -> None:
    """Measure on a sample of every verified shard how far its dependencies can be trusted.

    The audits are false acceptance, a second model, and all recipes on the same roots.
    `entropylong export` then writes the report again with them.
    """
    with resumable():
        project = open_project(settings_file)
        settings = project.find_dataset(dataset)
        from entropylong_assets.cli.output import print_audits
        from entropylong_assets.cli.run_progress import RunProgress
        from entropylong_assets.orchestration.local_run import open_instance, run_audits

        with open_instance(project) as instance, RunProgress() as progress:
            runs = run_audits(project, settings, instance, progress.watcher)
        print_audits(out, settings)
    out.print(f"{runs} runs" if runs else "Everything is up to date: no run was needed.")


def evidence(
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    file: Annotated[str, typer.Option("--out", help="File to write.")] = "evidence.md",
) -> None:
    """Run the pipeline, the audits and the test with planted facts, and write a page of results.

    What is up to date is not run again.
    """
    with resumable():
        project = open_project(settings_file)
        from entropylong_assets.orchestration.evidence_run import make_evidence
        from entropylong_assets.orchestration.local_run import open_instance

        settings = project.find_dataset(dataset)
        with open_instance(project) as instance:
            make_evidence(project, settings, instance, file, lambda line: out.print(escape(line)))
    out.print(f"wrote {escape(file)}", soft_wrap=True)

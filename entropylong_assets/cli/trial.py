"""The command `trial`: train a small model on each recipe's samples, and compare the models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from entropylong_assets.cli.common import (
    DatasetName,
    SettingsFile,
    open_dataset,
    open_project,
    out,
    plain_errors,
)

if TYPE_CHECKING:
    from entropylong_assets.audits.trial.prepare import PrepareSettings


def add_commands(app: typer.Typer) -> None:
    app.command()(trial)


def trial(
    folder: Annotated[Path, typer.Argument(help="Folder of the trial's samples and results.")],
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    prepare_only: Annotated[
        bool, typer.Option("--prepare", help="Write the folder again and stop: train elsewhere.")
    ] = False,
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="Held-out text: a JSON Lines file with a field `text`, a corpus of the settings, "
            "or the folder of another trial, whose items are taken. Without it: documents of the "
            "dataset's corpus that no sample contains."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(help="YAML file of arms; else every built-in recipe and `genuine`."),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Tokens per run, and per sample, separated by a comma.")
    ] = "15000000,16384",
    page: Annotated[str, typer.Option("--out", help="Page to write.")] = "docs/training-trial.md",
) -> None:
    """Pack samples by every recipe, train on each under the same tokens, and write the comparison.

    Continues where an earlier call of the same folder stopped. FOLDER/plan.json lists the runs and
    can be edited. The results are kept beside the dataset's tables too, for the report.
    """
    with plain_errors():
        from entropylong_assets.audits.trial.folder import TrialFolder
        from entropylong_assets.audits.trial.page import write_page
        from entropylong_assets.audits.trial.plan import read_plan, read_results
        from entropylong_assets.audits.trial.published import publish
        from entropylong_assets.audits.trial.runs import Runner
        from entropylong_assets.project import open_store

        if prepare_only or not (folder / "trial.json").exists():
            _prepare(folder, settings_file, dataset, evaluation, _wished(arms, size))
        if prepare_only:
            out.print(f"wrote {escape(str(folder))}", soft_wrap=True)
            return
        plan = replace(read_plan(folder / "plan.json"), data=str(folder))
        runner = Runner(plan, folder / "results", lambda line: out.print(escape(line)))
        runner.run()
        facts, results = TrialFolder(folder).facts, read_results(runner.results_file)
        write_page(page, facts, results)
        publish(open_store(open_dataset(settings_file, dataset)), facts, results)
    out.print(f"wrote {escape(page)}", soft_wrap=True)


def _wished(arms: str | None, size: str) -> PrepareSettings:
    from entropylong_assets.audits.trial.arms import read_arms
    from entropylong_assets.audits.trial.folder import TrialError
    from entropylong_assets.audits.trial.prepare import PrepareSettings

    try:
        tokens, sample_tokens = map(int, size.split(","))
    except ValueError:
        raise TrialError(
            f"--size {size}: expected the tokens per run and the tokens per sample, as in "
            "15000000,16384"
        ) from None
    wished = PrepareSettings(tokens=tokens, sample_tokens=sample_tokens)
    return replace(wished, arms=read_arms(arms)) if arms else wished


def _prepare(
    folder: Path,
    settings_file: str | None,
    dataset: str | None,
    evaluation: str | None,
    wished: PrepareSettings,
) -> None:
    from entropylong_assets.audits.trial.folder import TrialFolder
    from entropylong_assets.audits.trial.held_out import corpus_texts, file_texts
    from entropylong_assets.audits.trial.prepare import prepare
    from entropylong_assets.project import open_store
    from entropylong_assets.report.run import open_dataset as open_source
    from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS

    project = open_project(settings_file)
    settings = project.find_dataset(dataset)
    source = open_source(settings, open_store(settings))
    texts: Iterable[str] | TrialFolder | None = None
    if evaluation and (Path(evaluation) / "trial.json").exists():
        texts = TrialFolder(evaluation)
    elif evaluation in project.corpora:
        store = open_store(project.find_corpus(evaluation))
        texts = corpus_texts(store, store.shards(CORPUS_DOCUMENTS), set(), settings.seed)
    elif evaluation:
        texts = file_texts(evaluation)
    # Under the settings that the tables were made with.
    prepare(
        source.settings,
        source.store,
        folder,
        wished,
        texts=texts,
        log=lambda line: out.print(escape(line)),
    )

"""The command `trial`: train a small model on each recipe's samples, and compare the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from entropylong_assets.cli.common import (
    DatasetName,
    SettingsFile,
    open_project,
    out,
    plain_errors,
)

if TYPE_CHECKING:
    from entropylong_assets.audits.trial.folder import TrialFacts
    from entropylong_assets.project import Project
    from entropylong_assets.settings.section import Settings


def add_commands(app: typer.Typer) -> None:
    app.command()(trial)


def trial(
    folder: Annotated[Path, typer.Argument(help="Folder of the trial's samples and results.")],
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    prepare_only: Annotated[
        bool,
        typer.Option(
            "--prepare", help="Write samples and plan to FOLDER and stop; train elsewhere."
        ),
    ] = False,
    evaluation: Annotated[
        str | None,
        typer.Option(help="Held-out text, instead of `trial.evaluation`."),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="YAML file of arms, instead of `trial.arms`. Without either: every built-in "
            "recipe and rule `genuine`."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Tokens per run and tokens per sample, separated by a comma, as in "
            "15000000,16384, instead of `trial.tokens` and `trial.sample_tokens`."
        ),
    ] = None,
    page: Annotated[str, typer.Option("--out", help="Page to write.")] = "training-trial.md",
) -> None:
    """Pack samples by every recipe, train on each under the same tokens, and write the comparison.

    Continues where an earlier call with the same folder stopped. FOLDER/plan.json lists the runs
    and can be edited. The results are also published as the asset `training_trial`, so the report
    shows them. Runs that the asset has finished are not repeated.
    """
    with plain_errors():
        from entropylong_assets.audits.trial.folder import TrialFolder
        from entropylong_assets.audits.trial.page import write_page
        from entropylong_assets.audits.trial.plan import read_plan, read_results
        from entropylong_assets.audits.trial.record import stored_results
        from entropylong_assets.audits.trial.runs import Runner
        from entropylong_assets.project import open_store

        if prepare_only or not (folder / "trial.json").exists():
            given = {"evaluation": evaluation, **_arms(arms), **_sizes(size)}
            _prepare(folder, settings_file, dataset, given)
        if prepare_only:
            out.print(f"wrote {escape(str(folder))}", soft_wrap=True)
            return
        project = open_project(settings_file)
        settings = project.find_dataset(dataset)
        plan = replace(read_plan(folder / "plan.json"), data=str(folder))
        runner = Runner(plan, folder / "results", lambda line: out.print(escape(line)))
        runner.take_over(stored_results(open_store(settings)))
        runner.run()
        facts, results = TrialFolder(folder).facts, read_results(runner.results_file)
        write_page(page, facts, results)
        out.print(f"wrote {escape(page)}", soft_wrap=True)
        _publish(project, settings, folder, facts, results)


def _arms(file: str | None) -> dict[str, Any]:
    from entropylong_assets.audits.trial.arms import read_arms

    return {"arms": read_arms(file)} if file else {}


def _sizes(size: str | None) -> dict[str, Any]:
    from entropylong_assets.audits.trial.folder import TrialError

    if size is None:
        return {}
    try:
        tokens, sample_tokens = map(int, size.split(","))
    except ValueError:
        raise TrialError(
            f"--size {size}: expected the tokens per run and the tokens per sample, as in "
            "15000000,16384"
        ) from None
    return {"tokens": tokens, "sample_tokens": sample_tokens}


def _prepare(
    folder: Path, settings_file: str | None, dataset: str | None, given: Mapping[str, Any]
) -> None:
    """Write the folder. given: values in place of those of the section `trial`; None: not given."""
    from entropylong_assets.audits.trial.arms import default_arms
    from entropylong_assets.audits.trial.prepare import prepare
    from entropylong_assets.audits.trial.record import remember_determinants
    from entropylong_assets.audits.trial.settings import TrialSettings
    from entropylong_assets.audits.trial.stage import TRAINING_TRIAL_STAGE
    from entropylong_assets.project import open_store
    from entropylong_assets.report.run import open_dataset as open_source
    from entropylong_assets.stages.stage import Partition
    from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
    from entropylong_assets.stages.versioning import determinants

    settings = open_project(settings_file).find_dataset(dataset)
    # Under the settings that the tables were made with.
    source = open_source(settings, open_store(settings))
    values = dict(source.settings.trial) | {k: v for k, v in given.items() if v is not None}
    values["arms"] = values["arms"] or default_arms(source.settings)
    chosen = source.settings.model_copy(update={"trial": TrialSettings.model_validate(values)})
    TRAINING_TRIAL_STAGE.validate(chosen)
    made_from = determinants(TRAINING_TRIAL_STAGE, Partition(chosen, source.store))
    shards = list(made_from["inputs"][VERIFIED_DEPENDENCIES.name])
    prepare(chosen, source.store, folder, shards, log=lambda line: out.print(escape(line)))
    remember_determinants(folder, made_from)


def _publish(
    project: Project,
    settings: Settings,
    folder: Path,
    facts: TrialFacts,
    results: Sequence[Mapping[str, Any]],
) -> None:
    """Publish the results as the partition of `training_trial`, check it, and tell Dagster."""
    from entropylong_assets.audits.trial.record import determinants_of, publish
    from entropylong_assets.audits.trial.stage import TRAINING_TRIAL_STAGE
    from entropylong_assets.orchestration.adoption import adopt
    from entropylong_assets.orchestration.local_run import open_instance
    from entropylong_assets.project import open_store
    from entropylong_assets.stages.checks import run_checks
    from entropylong_assets.stages.stage import Partition
    from entropylong_assets.stages.versioning import determinants

    stage, partition = TRAINING_TRIAL_STAGE, Partition(settings, open_store(settings))
    made_from = determinants_of(folder) or determinants(stage, partition)
    publish(partition.store, made_from, facts, results)
    for result in run_checks(stage, partition):
        if not result.passed:
            out.print(f"[yellow]check {result.check.name}:[/] {result.faulty_rows} faults")
    with open_instance(project) as instance:
        adopt(settings, stage, partition, instance)

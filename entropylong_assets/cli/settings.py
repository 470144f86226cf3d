"""The command `settings`: the settings in force, and the reference of all settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from entropylong_assets.cli.common import SettingsFile, open_project, plain_errors

if TYPE_CHECKING:
    from entropylong_assets.project import Project


def add_commands(app: typer.Typer) -> None:
    app.command()(settings)


def settings(
    settings_file: SettingsFile = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference of all settings instead.")
    ] = False,
) -> None:
    """Check the settings and print them as YAML, with the values that profile and defaults add."""
    with plain_errors():
        if markdown:
            from entropylong_assets.pipeline import STAGES
            from entropylong_assets.report.settings_reference import settings_page

            text = settings_page(STAGES)
        else:
            import yaml

            content = settings_content(open_project(settings_file))
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    print(text, end="")


def settings_content(project: Project) -> dict[str, Any]:
    """The content of a settings file that gives this project, with every value written out."""
    return {
        "data_uri": project.data_uri,
        "cluster": project.cluster.model_dump(mode="json"),
        "corpora": {
            name: corpus.model_dump(mode="json", exclude={"name", "data_uri"})
            for name, corpus in project.corpora.items()
        },
        "datasets": {
            name: dataset.model_dump(mode="json", exclude={"name", "data_uri"})
            | {"corpus": dataset.corpus.name}
            for name, dataset in project.datasets.items()
        },
    }

"""The command line's own options, and the command `settings`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.cli.settings import settings_content
from entropylong_assets.project import make_project

REPOSITORY = Path(__file__).parents[2]
COMMANDS: dict[str, click.Command] = get_command(app).commands  # type: ignore[attr-defined]
LAB = {
    "data_uri": "lab",
    "cluster": {"resources": {"entropy_scores": {"memory": "16GiB"}}},
    "corpora": {"web": {"seed": 7, "sources": [{"name": "web", "uri": "web/*.jsonl"}]}},
    "datasets": {
        "ours": {"corpus": "web", "roots": {"fraction_by_source": {"web": 0.5}}},
        "paper_rule": {"corpus": "web", "profile": "paper"},
    },
}


def test_version_is_that_of_the_project_file() -> None:
    """The failure: a second version number in the code that nobody raises."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"entropylong {project['version']}\n")


@pytest.mark.parametrize(("typed", "offered"), [("entropylong verify-", "verify-export")])
def test_shell_completes_commands(typed: str, offered: str) -> None:
    """What bash runs when a user types a part of a command and the tab key."""
    done = subprocess.run(
        [sys.executable, "-c", "from entropylong_assets.cli.main import app; app()"],
        env=os.environ
        | {
            "_ENTROPYLONG_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert offered in done.stdout.split(), done.stderr


@pytest.mark.parametrize("values", [LAB, {"profile": "quickstart"}, {"profile": "paper"}])
def test_printed_settings_give_the_same_project(values: dict[str, object]) -> None:
    """The failure: a setting that is left out, or printed in a form that is read as another."""
    project = make_project(values)
    read = make_project(yaml.safe_load(yaml.safe_dump(settings_content(project))))
    assert (read.corpora, read.datasets) == (project.corpora, project.datasets)
    # A default that is written out is an object of another class with the same values.
    assert read.cluster.model_dump() == project.cluster.model_dump()


def test_wrong_settings_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("verification: {epsilon: 1.4}\n")
    done = CliRunner().invoke(app, ["settings", "--settings", str(file)])
    assert done.exit_code == 2
    assert re.fullmatch(
        r"error: .*verification\.epsilon: .*less than 1 \(got 1\.4\)\n", done.output
    )


def arguments_of(command: click.Command) -> list[str]:
    """A value for each argument and option that the command requires."""
    given = []
    for parameter in command.params:
        if parameter.required:
            named = [parameter.opts[0]] if parameter.param_type_name == "option" else []
            given += [*named, "x"]
    return given


@pytest.mark.parametrize(
    "command", sorted(COMMANDS.keys() - {"demo", "verify-export", "retokenize"})
)
def test_every_command_without_settings_says_so_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure: it goes on with defaults, and ends with an error about a source or a model hub,
    or with a new folder `.dagster`."""
    monkeypatch.delenv("ENTROPYLONG_PROFILE")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [command, *arguments_of(COMMANDS[command])])
    assert done.exit_code == 2, done.output
    assert re.fullmatch(
        r"error: no settings: .*--settings.*ENTROPYLONG_SETTINGS.*own-corpus\.md.*\n", done.output
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["scan"], ["run"], ["run", "--dry-run"], ["estimate"]])
def test_settings_without_a_source_say_so(command: list[str], tmp_path: Path) -> None:
    """The failure: `0 shards, new: none` and exit code 0, or advice about files of the sources."""
    (tmp_path / "my.yaml").write_text("corpora: {web: {}}\ndatasets: {ours: {}}\n")
    done = CliRunner().invoke(app, [*command, "--settings", str(tmp_path / "my.yaml")])
    assert done.exit_code == 2, done.output
    assert "error: corpus web: its settings name no source; add one" in done.output


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("audit", 2, "error: dataset ours has no verified shard to audit; make one with "),
        ("status", 0, "no shard yet: `entropylong scan` or `entropylong run` registers them"),
        ("report", 2, "dataset ours has no samples; make some with `entropylong run`, or "),
        ("export", 2, "no shard yet; run `entropylong run`, or materialize long_context_samples"),
    ],
)
def test_commands_before_the_first_run_say_what_to_run(
    command: str, code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure: `Everything is up to date` of a dataset without any data."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "my.yaml").write_text(
        "corpora: {web: {sources: [{name: web, uri: in}]}}\ndatasets: {ours: {}}\n"
    )
    done = CliRunner().invoke(app, [command, "--settings", str(tmp_path / "my.yaml")])
    assert (done.exit_code, "up to date:" in done.output) == (code, False), done.output
    assert line in done.output

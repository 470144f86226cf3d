"""The command line's own options, and the command `settings`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.cli.settings import settings_content
from entropylong_assets.project import make_project

REPOSITORY = Path(__file__).parents[2]
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

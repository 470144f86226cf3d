"""The wheel: built, installed into a new environment, and run without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "entropylong_assets"
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without this repository on its path, and return what it prints."""
    inherited: Mapping[str, str] = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "DAGSTER_HOME") and not name.startswith("ENTROPYLONG_")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network from a copy, so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, source / name)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of an environment with the wheel, and with the other packages of this environment.

    A `.pth` file adds their folder. Those in that folder are not read, an editable installation of
    the repository among them. It is written last: pip must not see that installation either.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


def test_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    """The failure: a check's SQL, the report's scripts or dagster.yaml missing once installed."""
    expected = {
        path.relative_to(REPOSITORY).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as files:
        shipped = {name for name in files.namelist() if ".dist-info/" not in name}
    assert shipped == expected
    assert {Path(name).suffix for name in shipped} >= {
        ".sql",
        ".css",
        ".js",
        ".md",
        ".txt",
        ".yaml",
    }


def test_installed_command_prints_the_version_of_the_project(
    bin_folder: Path, tmp_path: Path
) -> None:
    printed = run(bin_folder / "entropylong", "--version", cwd=tmp_path)
    assert printed == f"entropylong {PYPROJECT['project']['version']}\n"


def test_installed_command_checks_settings(bin_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("profile: paper\nverification: {epsilon: 0.25}\n")
    printed = run(bin_folder / "entropylong", "settings", "-s", "my.yaml", cwd=tmp_path)
    dataset = yaml.safe_load(printed)["datasets"]["dataset"]
    assert dataset["verification"]["epsilon"] == 0.25
    assert dataset["retrieval"]["top_k"] == 32


def test_installed_command_makes_an_instance_and_finds_shards(
    bin_folder: Path, tmp_path: Path
) -> None:
    """The failure: dagster.yaml is looked for in the working folder, so that no limit applies."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "Some words."}\n')
    (tmp_path / "my.yaml").write_text('corpus: {sources: [{name: texts, uri: "texts/*.jsonl"}]}\n')
    printed = run(bin_folder / "entropylong", "scan", "-s", "my.yaml", cwd=tmp_path)
    assert "new: texts-00000" in printed
    instance = yaml.safe_load((tmp_path / ".dagster" / "dagster.yaml").read_text())
    assert instance["concurrency"]["pools"]["default_limit"] == 1


def test_installed_package_reads_its_own_files(bin_folder: Path, tmp_path: Path) -> None:
    script = """
import entropylong_assets
from importlib.metadata import entry_points
from pathlib import Path
from entropylong_assets.pipeline import STAGES

folder = Path(entropylong_assets.__file__).parent
queries = [s.check_folder / f"{c.name}.sql" for s in STAGES for c in s.checks]
assert len(queries) > 30 and all(q.read_text() for q in queries)
components = entry_points(group="dagster_dg_cli.registry_modules")
assert "entropylong_assets" in components.names
print(folder)
"""
    printed = run(bin_folder / "python", "-c", script, cwd=tmp_path)
    assert Path(printed.strip()).is_relative_to(bin_folder.parent)

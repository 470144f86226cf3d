"""The component in another `dg` project, as a team would use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.project import make_project
from entropylong_assets_tests.tiny_world import tiny_values

TYPE = "entropylong_assets.EntropyLong"
BIN = Path(sys.executable).parent

FOREIGN_ASSET = """
import dagster as dg


@dg.asset(deps=[dg.AssetKey(["web", "training_dataset"])])
def trained_model() -> None:
    pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A `dg` project without any definition."""
    root = tmp_path / "lab"
    (root / "src" / "lab" / "defs").mkdir(parents=True)
    for folder in ("lab", "lab/defs"):
        (root / "src" / folder / "__init__.py").touch()
    (root / "src" / "lab" / "definitions.py").write_text(
        "from pathlib import Path\n"
        "from dagster import definitions, load_from_defs_folder\n\n\n"
        "@definitions\n"
        "def defs():\n"
        "    return load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (root / "pyproject.toml").write_text(
        '[project]\nname = "lab"\nversion = "0.1.0"\n\n'
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n'
        '[tool.dg]\ndirectory_type = "project"\n\n'
        '[tool.dg.project]\nroot_module = "lab"\ncode_location_name = "lab"\n'
    )
    return root


def dg_cli(project: Path, *arguments: str) -> str:
    """Run `dg` in the project and return what it prints. Fails if it does."""
    environment = os.environ | {
        "PYTHONPATH": str(project / "src"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(BIN.parent),
        "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [str(BIN / "dg"), *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_defs(project: Path, name: str, attributes: dict[str, Any]) -> None:
    folder = project / "src" / "lab" / "defs" / name
    folder.mkdir(exist_ok=True)
    content = {"type": TYPE, "attributes": attributes}
    (folder / "defs.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_component_is_found_scaffolded_and_checked(
    project: Path, tmp_path: Path, tiny_models: tuple[str, str], tiny_corpus: Path
) -> None:
    """The failures: no entry point, a component that can't be scaffolded, attributes refused."""
    assert TYPE in dg_cli(project, "list", "components")
    dg_cli(project, "scaffold", "defs", TYPE, "web")
    scaffolded = project / "src" / "lab" / "defs" / "web" / "defs.yaml"
    assert yaml.safe_load(scaffolded.read_text())["type"] == TYPE
    write_defs(project, "web", tiny_values(tiny_corpus, tmp_path / "data", tiny_models))
    dg_cli(project, "check", "defs")
    listed = json.loads(dg_cli(project, "list", "defs", "--json"))
    keys = {asset["asset_key"] for asset in listed["assets"]}
    assert {"web/entropy_scores", "web_corpus/corpus_documents"} <= keys


def load(project: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.syspath_prepend(str(project / "src"))
    for name in [name for name in sys.modules if name == "lab" or name.startswith("lab.")]:
        monkeypatch.delitem(sys.modules, name)
    return dg.load_from_defs_folder(path_within_project=project / "src" / "lab")


def test_one_shard_is_materialized_through_the_component(
    project: Path,
    tmp_path: Path,
    tiny_models: tuple[str, str],
    tiny_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = tiny_values(tiny_corpus, tmp_path / "data", tiny_models)
    write_defs(project, "web", values)
    defs = load(project, monkeypatch)
    with dg.DagsterInstance.ephemeral() as instance:
        corpus = make_project(values, default_names=("web_corpus", "web")).corpus
        shards = [shard.key for shard in register_shards(corpus, instance).shards]
        assert instance.get_dynamic_partitions("web_corpus_shards") == shards
        result = defs.resolve_job_def("web_corpus__ingest").execute_in_process(
            instance=instance, partition_key=shards[0]
        )
        assert result.success
        evaluations = result.get_asset_check_evaluations()
        assert evaluations
        assert all(evaluation.passed for evaluation in evaluations)
    folder = tmp_path / "data" / "web_corpus" / "corpus_documents" / shards[0]
    assert (folder / "manifest.json").exists()


def test_two_components_and_a_foreign_asset_stand_side_by_side(
    project: Path,
    tmp_path: Path,
    tiny_models: tuple[str, str],
    tiny_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The failures: two components that share a name, an asset of another team that can't depend
    on ours, an executor forced on the whole project."""
    for name in ("web", "books"):
        write_defs(project, name, tiny_values(tiny_corpus, tmp_path / name, tiny_models))
    (project / "src" / "lab" / "defs" / "training.py").write_text(FOREIGN_ASSET)
    defs = load(project, monkeypatch)
    graph = defs.resolve_asset_graph()
    for name in ("web", "books"):
        assert dg.AssetKey([name, "training_dataset"]) in graph.get_all_asset_keys()
    foreign = graph.get(dg.AssetKey("trained_model"))
    assert foreign.parent_keys == {dg.AssetKey(["web", "training_dataset"])}
    assert {"web__verify", "books__verify"} <= {
        job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")
    }
    assert defs.executor is None

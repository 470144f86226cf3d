"""The definitions that Dagster loads, and the graph that the documentation shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import make_project

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_definitions(make_project({}, "quickstart"))


def test_docs_show_the_real_graph(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    edges = {
        (parent.path[-1], key.path[-1])
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
    }
    text = (REPOSITORY / "docs" / "concepts.md").read_text(encoding="utf-8")
    diagram = re.search(r"```mermaid(.*?)```", text, re.DOTALL)
    assert diagram is not None
    assert set(re.findall(r"(\w+) --> (\w+)", diagram[1])) == edges


def test_repository_is_a_dg_project(defs: dg.Definitions, tmp_path: Path) -> None:
    """`dg list defs` and `dg dev` load what `[tool.dg]` names."""
    tool = Path(sys.executable).parent
    done = subprocess.run(
        [tool / "dg", "list", "defs", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ
        | {
            "PATH": f"{tool}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(tool.parent),
            "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0",
            "DAGSTER_HOME": str(tmp_path),
            "ENTROPYLONG_PROFILE": "quickstart",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    listed = {asset["asset_key"] for asset in json.loads(done.stdout)["assets"]}
    keys = defs.resolve_asset_graph().get_all_asset_keys()
    assert listed == {key.to_user_string() for key in keys}


def test_stage_over_all_shards_is_in_no_partitioned_job(defs: dg.Definitions) -> None:
    """There it would run once per partition."""
    graph = defs.resolve_asset_graph()
    seen = 0
    for job in defs.resolve_all_job_defs():
        if job.name.startswith("__") or job.name.endswith("__everything"):
            continue  # `everything` says in its description that it does just that
        keys = job.asset_layer.executable_asset_keys
        if not keys:
            continue  # `scan`, `retire`, `takedown` and `compact` make no asset
        partitioned = {graph.get(key).is_partitioned for key in keys}
        assert len(partitioned) == 1, job.name
        seen += 1
    assert seen >= 6


def test_every_asset_has_checks_and_what_is_read_has_blocking_ones(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    with_checks = {key.asset_key for key in graph.asset_check_keys}
    assert with_checks == set(graph.get_all_asset_keys())
    blocking = [k for k in graph.asset_check_keys if graph.get(k).blocking]
    assert len(blocking) >= 25
    parents = {
        parent for key in graph.get_all_asset_keys() for parent in graph.get(key).parent_keys
    }
    assert parents <= {key.asset_key for key in blocking}


def test_jobs_have_the_run_time_limit_of_their_stages(defs: dg.Definitions) -> None:
    for job in defs.resolve_all_job_defs():
        name = job.name.partition("__")[2]
        for stage in STAGES:
            if not job.name.startswith("__") and stage.job.name == name:
                assert job.tags["dagster/max_runtime"] == str(stage.job.hours * 3600)


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | environment,
    )


def test_definitions_load_without_the_heavy_modules() -> None:
    """The code location must load on a machine without a GPU stack, and quickly."""
    done = run_python(
        "import sys, dagster as dg;"
        "from entropylong_assets.definitions import defs;"
        "defs().resolve_asset_graph();"
        "print([m for m in ('torch', 'transformers', 'lancedb', 'sentence_transformers', 'ray',"
        " 'matplotlib', 'plotly') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_the_package_has_no_side_effects() -> None:
    """The failures: settings read at import, so that no other file can be named; another class of
    file system for every user of fsspec; a line printed at import."""
    done = run_python(
        "import importlib, pkgutil, fsspec\n"
        "known = {p: fsspec.get_filesystem_class(p) for p in ('file', 's3')}\n"
        "import entropylong_assets\n"
        "names = [m.name for m in pkgutil.walk_packages(entropylong_assets.__path__,\n"
        "    'entropylong_assets.') if not m.name.endswith(('__main__', '_cuda'))]\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "assert len(names) > 80, names\n"
        "from entropylong_assets.storage.object_storage import open_uri\n"
        "open_uri('/tmp/x')\n"
        "for p, cls in known.items():\n"
        "    assert fsspec.get_filesystem_class(p) is cls, p\n"
        "print('done')\n",
        ENTROPYLONG_SETTINGS="/nonexistent",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_command_line_reads_the_named_settings_alone(tmp_path: Path) -> None:
    """The failure: the file of ENTROPYLONG_SETTINGS is read at import, whatever is asked for."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "Some words."}\n')
    settings = tmp_path / "my.yaml"
    settings.write_text(
        f"data_uri: {tmp_path}/data\ncorpora:\n  web:\n    sources:\n"
        f"      - {{name: s, uri: '{tmp_path}/in/*.jsonl'}}\n"
    )
    done = run_python(
        "import sys; sys.argv = ['entropylong', 'scan', '--settings', "
        f"{str(settings)!r}]; from entropylong_assets.cli.main import app; app()",
        ENTROPYLONG_SETTINGS="/nonexistent",
        DAGSTER_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "web: 1 shards, new: s-00000" in done.stdout
    assert (tmp_path / "data" / "web" / "shards.json").exists()


def test_missing_settings_file_is_one_line() -> None:
    done = run_python(
        "import sys; sys.argv = ['entropylong', 'scan'];"
        "from entropylong_assets.cli.main import app; app()",
        ENTROPYLONG_SETTINGS="/nonexistent",
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: settings file /nonexistent: No such file or directory"

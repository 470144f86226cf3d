"""The graph that Dagster serves, and what the README says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dagster as dg

from entropylong_assets.definitions import defs

REPOSITORY = Path(__file__).parents[1]


def edges() -> set[tuple[str, str]]:
    graph = defs.resolve_asset_graph()
    return {
        (parent.to_user_string(), key.to_user_string())
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
    }


def test_the_readme_shows_the_real_graph() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    diagram = re.search(r"```mermaid(.*?)```", text, re.DOTALL)
    assert diagram is not None
    drawn = set(re.findall(r"(\w+) --> (\w+)", diagram[1]))
    assert drawn == edges()


def test_what_is_over_all_shards_stands_in_no_partitioned_job() -> None:
    """There it would run once a partition."""
    graph = defs.resolve_asset_graph()
    seen = 0
    for job in defs.resolve_all_job_defs():
        if job.name.startswith("__") or job.name == "everything":
            continue  # `everything` says in its description that it does just that
        keys = job.asset_layer.executable_asset_keys
        partitioned = {graph.get(key).is_partitioned for key in keys}
        assert len(partitioned) == 1, job.name
        seen += 1
    assert seen >= 6


def test_definitions_load_without_the_heavy_modules() -> None:
    """The code location must load on a machine without a GPU stack, and quickly."""
    script = (
        "import sys, entropylong_assets.definitions;"
        "print([m for m in ('torch', 'transformers', 'lancedb', 'sentence_transformers', 'ray',"
        " 'matplotlib', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout.strip() == "[]"


def test_dagster_is_known_in_its_own_files_alone() -> None:
    allowed = {"assets.py", "checks.py", "definitions.py"}
    package = REPOSITORY / "entropylong_assets"
    seen = 0
    for path in package.rglob("*.py"):
        if re.search(r"^\s*(import dagster|from dagster)", path.read_text(), re.MULTILINE):
            assert path.name in allowed or path.parent.name in ("orchestration", "cli"), path
            seen += 1
    assert seen > 10


def test_checks_stand_between_every_two_assets() -> None:
    graph = defs.resolve_asset_graph()
    with_checks = {key.asset_key for key in graph.asset_check_keys}
    assert with_checks == set(graph.get_all_asset_keys())
    blocking = [k for k in graph.asset_check_keys if graph.get(k).blocking]
    assert len(blocking) >= 25
    assert dg.AssetKey("corpus_documents") in {key.asset_key for key in blocking}

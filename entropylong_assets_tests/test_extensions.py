"""The package of docs/extending.md, installed and used as the page says.

One run in another process, since entry points are read when Python starts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from entropylong_assets_tests.tiny_world import document, tiny_values

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "extending.md"

RUN = """
import json
import sys

import dagster as dg

from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import load_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

project = load_project(sys.argv[1])
store = open_store(project.dataset)
with dg.DagsterInstance.ephemeral() as instance:
    shards = [shard.key for shard in register_shards(project.corpus, instance).shards]
    run_project(project, instance)
pairs = store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs")
samples = store.read_all(LONG_CONTEXT_SAMPLES, shards, "samples")
drop = pairs["surprisal"].cast(float) - pairs["surprisal_context"].cast(float)
print(json.dumps({
    "documents": sum(store.summary(CANDIDATE_CONTEXTS, s).anchors > 0 for s in shards),
    "filtered": store.read_all(CORPUS_DOCUMENTS, shards, "dropped")["reason"].to_list(),
    "verdicts": sorted(pairs["verdict"].unique().to_list()),
    "accepted": int(pairs["accepted"].sum()),
    "accepted_drops": drop.filter(pairs["accepted"]).to_list(),
    "rejected_drops": drop.filter(~pairs["accepted"] & drop.is_not_null()).to_list(),
    "rules": sorted({rule for rules in pairs["accepted_by"] for rule in rules}),
    "samples": samples["input_ids"].to_list(),
    "checks": {
        f"{stage.name}/{name}": outcome.passed
        for settings in (project.corpus, project.dataset)
        for stage in project.stages_of(settings)
        for shard in store.shards(stage.tables)
        for name, outcome in store.check_outcomes(stage.tables, shard).items()
    },
}))
"""


def write_examples(folder: Path) -> dict[str, str]:
    """Write every example of the page that names its file; return their contents."""
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for name, content in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "lab_extensions" / "__init__.py").touch()
    return dict(blocks)


@pytest.fixture(scope="module")
def result(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]
) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("extensions")
    examples = write_examples(folder)
    installed = folder / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-build-isolation", "--target", installed, folder),
        ],
        check=True,
        capture_output=True,
    )
    notes = folder / "notes"
    notes.mkdir()
    for name, first in (("a", 100), ("b", 200)):
        texts = [document(first + i) for i in range(10)]
        texts.append(document(first + 50).upper())
        (notes / f"{name}.paragraphs").write_text("\n----\n".join(texts), encoding="utf-8")
    values = tiny_values(notes, folder / "data", tiny_models)
    for section, changes in yaml.safe_load(examples["settings.yaml"]).items():
        if isinstance(changes, dict):
            values[section] = {**values.get(section, {}), **changes}
    values["corpus"]["sources"] = [{"name": "notes", "uri": f"{notes}/*.paragraphs"}]
    settings = folder / "all.yaml"
    settings.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(settings)],
        env=os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{PROJECT}"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    export = next((folder / "data" / "dataset" / "exports").iterdir())
    printed["export"] = (export / "token_lines" / "train.txt").read_text()
    return printed


def test_rule_of_another_package_decides(result: dict[str, object]) -> None:
    """The failure: a rule that changes a schema, or whose verdicts the checks don't know."""
    assert "token_not_likelier" in result["verdicts"]  # type: ignore[operator]
    assert {"sharp_drop"} <= set(result["rules"]) <= {"plain", "sharp_drop"}  # type: ignore[call-overload]
    accepted, rejected = result["accepted_drops"], result["rejected_drops"]
    assert accepted
    assert rejected
    assert min(accepted) >= 0.693  # type: ignore[call-overload]
    assert max(rejected) < 0.694  # type: ignore[call-overload]


def test_filter_of_another_package_drops_with_its_reason(result: dict[str, object]) -> None:
    assert result["filtered"] == ["calm.shouting"] * 2


def test_all_are_used_and_every_blocking_check_passes(result: dict[str, object]) -> None:
    assert result["documents"] == 2
    checks = dict(result["checks"])  # type: ignore[call-overload]
    warnings = {"verified_dependencies/false_acceptance_low"}
    assert {name for name, passed in checks.items() if not passed} <= warnings
    assert len(checks) > 30


def test_export_format_of_another_package_holds_every_token(result: dict[str, object]) -> None:
    lines = str(result["export"]).splitlines()
    samples = [" ".join(map(str, ids)) for ids in result["samples"]]  # type: ignore[attr-defined]
    assert sorted(lines) == sorted(samples)
    assert len(lines) >= 1

"""A trial's folder from a dataset's stored tables.

Failures looked for: an arm that is not the samples that the stage makes under the same recipe; an
arm under another rule that still packs the first rule's pairs; an evaluation text that samples
contain; a folder that looks complete but is not.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from entropylong_assets.audits.trial.arms import DEFAULT_ARMS, Arm, pack_arm, read_arms, settings_of
from entropylong_assets.audits.trial.folder import TrialError, TrialFolder
from entropylong_assets.audits.trial.plan import read_results
from entropylong_assets.audits.trial.prepare import PrepareSettings, prepare
from entropylong_assets.audits.trial.published import identity, trial_figures
from entropylong_assets.audits.trial.tasks import TASKS
from entropylong_assets.cli.main import app
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.training_data.shards import make_shards
from entropylong_assets_tests.tiny_world import tiny_values

TOKENS = 1024


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str], tiny_corpus: Path
) -> tuple[Path, Settings, TableStore, list[str]]:
    """A settings file, and the dataset that was made by it, with samples of recipe `no_verify`."""
    from entropylong_assets.project import make_project

    folder = tmp_path_factory.mktemp("dataset")
    values = tiny_values(
        tiny_corpus,
        folder / "data",
        tiny_models,
        samples={"tokens": TOKENS, "recipe": "no_verify", "fill": "verified_only"},
    )
    (folder / "settings.json").write_text(json.dumps(values))
    settings = make_project(values).dataset
    shards = make_shards(settings)
    return folder, settings, open_store(settings), shards


def held_out_text(folder: Path) -> Path:
    """Documents of invented words, some of them long."""
    draw = np.random.default_rng(8)
    words = ["".join(draw.choice(list("abcdefghijklmnop"), 6)) for _ in range(600)]
    lines = []
    for number in range(60):
        count = 1500 if number < 4 else 150
        lines.append(json.dumps({"text": " ".join(draw.choice(words, count))}))
    file = folder / "held-out.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_arm_is_what_the_stage_packs_under_its_recipe(
    made: tuple[Path, Settings, TableStore, list[str]],
) -> None:
    _, settings, store, shards = made
    arm = Arm(recipe="no_verify", samples={"fill": "verified_only"})
    packed = pack_arm(arm, Partition(settings, store), shards, TOKENS, None)
    stored = store.read_all(LONG_CONTEXT_SAMPLES, shards, "samples")
    assert np.array_equal(packed.rows.token_ids_NT, np.stack(stored["input_ids"].to_numpy()))
    assert (packed.rows.lengths_N == TOKENS - stored["n_padding"].to_numpy()).all()
    tokens = packed.figures["tokens"]
    assert sum(tokens.values()) + len(stored) == len(stored) * TOKENS  # and one BOS each
    few = pack_arm(arm, Partition(settings, store), shards, TOKENS, 1)
    assert np.array_equal(few.rows.token_ids_NT, packed.rows.token_ids_NT[:1])
    assert few.figures["samples"] == 1
    assert few.figures["roots"] < packed.figures["roots"]


def test_arm_under_another_rule_packs_what_that_rule_accepts(
    made: tuple[Path, Settings, TableStore, list[str]],
) -> None:
    _, settings, store, shards = made
    pairs = store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs")
    found = {}
    for rule in ("plain", "calibrated"):
        arm = Arm(rule=rule, samples={"fill": "verified_only"})
        packed = pack_arm(arm, Partition(settings, store), shards, 4096, None)
        found[rule] = packed.figures["dependencies"]
        accepted = pairs.filter(pl.col("accepted_by").list.contains(rule))
        assert found[rule] == len(accepted)  # samples are long enough for all
        assert packed.figures["rule"] == rule
    assert 0 < found["calibrated"] < found["plain"]


def test_weights_of_an_arm_stand_at_its_anchors(
    made: tuple[Path, Settings, TableStore, list[str]],
) -> None:
    _, settings, store, shards = made
    arm = Arm(rule="plain", loss_weights="anchors", anchor_weight=3.0)
    rows = pack_arm(arm, Partition(settings, store), shards, 4096, None).rows
    assert rows.weights_NT is not None
    assert set(np.unique(rows.weights_NT)) <= {0.0, 1.0, 3.0}
    assert (rows.weights_NT == 3).sum() > 10
    for weights, length in zip(rows.weights_NT, rows.lengths_N, strict=True):
        assert (weights[length:] == 0).all()


def test_arms_are_read_and_refused_in_one_line(
    tmp_path: Path, made: tuple[Path, Settings, TableStore, list[str]]
) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text("ours: {recipe: calibrated, samples: {layout: interleaved}}\nbase: {}\n")
    assert read_arms(file)["ours"].samples == {"layout": "interleaved"}
    file.write_text("ours: {recipes: calibrated}\n")
    with pytest.raises(TrialError, match=r"ours\.recipes"):
        read_arms(file)
    _, settings, store, shards = made
    for arm, message in (
        (Arm(recipe="none_such"), "samples.recipe"),
        (Arm(samples={"layout": "wild"}), "samples.layout"),
        (Arm(rule="none_such"), "verification.compared_rules"),
    ):
        with pytest.raises(TrialError, match=message):
            pack_arm(arm, Partition(settings, store), shards, TOKENS, None)


def test_trial_runs_from_stored_tables_to_its_page(
    tmp_path: Path, made: tuple[Path, Settings, TableStore, list[str]]
) -> None:
    base, _, store, _ = made
    assert (identity(store), trial_figures(store)) == (None, [])
    arms = tmp_path / "arms.yaml"
    arms.write_text(
        "random: {recipe: random}\nno_verify: {recipe: no_verify}\nplain: {rule: plain}\n"
        "mixed: {recipe: entropylong, samples: {layout: interleaved, fill: corpus}}\n"
    )
    folder, page = tmp_path / "trial", tmp_path / "page.md"
    command = [
        *("trial", str(folder), "-s", str(base / "settings.json"), "--arms", str(arms)),
        *("--evaluation", str(held_out_text(tmp_path)), "--size", "16384,4096"),
        *("--out", str(page)),
    ]
    prepared = CliRunner().invoke(app, [*command, "--prepare"])
    assert prepared.exit_code == 0, prepared.output
    made_folder = TrialFolder(folder)
    assert list(made_folder.facts.arms) == ["random", "no_verify", "plain", "mixed"]
    plan = json.loads((folder / "plan.json").read_text())
    assert len(plan["runs"]) == 1 + 2 * 4
    plan |= {"compile": False, "items": 3, "short_window": 64}
    plan["settings"] = {"batch_tokens": 4096, "max_repeats": 9}
    for run in plan["runs"]:
        run["tokens"] = min(run["tokens"], 8192)
    (folder / "plan.json").write_text(json.dumps(plan))
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    results = read_results(folder / "results" / "results.jsonl")
    assert len(results) == 9
    assert {r["run"]["arm"] for r in results} == set(made_folder.facts.arms)
    assert {name for r in results for name in r["scores"]} == {
        *(f"{task}-{tokens}" for task in TASKS for tokens in (2048, 4096)),
        *("natural", "short"),
    }
    text = page.read_text()
    assert text.startswith("# Training trial")
    assert "## 8,192 tokens per run, samples of 4,096" in text
    assert "| `plain` less `no_verify` |" in text
    figures = {name: value for name, value, _ in trial_figures(store)}
    assert figures["trained models: tokens per run"] == 8192
    assert "(" in figures["trained on plain less random: answers at 4K (nats)"]
    seen = identity(store)
    again = CliRunner().invoke(app, command)
    assert identity(store) == seen  # the report is not stale after a call that ran nothing
    # A second trial over other samples, on the same items.
    other = [*command, "--prepare", "--evaluation", str(folder)]
    other[1] = str(tmp_path / "second")
    prepared = CliRunner().invoke(app, other)
    assert prepared.exit_code == 0, prepared.output
    second = TrialFolder(tmp_path / "second")
    assert second.evaluation_identity() == made_folder.evaluation_identity()
    assert second.facts.items == made_folder.facts.items
    assert "run 1 of" not in again.output


def test_arms_in_deploy_hold_the_default_ones_and_are_allowed(
    made: tuple[Path, Settings, TableStore, list[str]],
) -> None:
    arms = read_arms(Path(__file__).parents[2] / "deploy" / "training" / "arms.yaml")
    assert {name: arms[name] for name in DEFAULT_ARMS} == DEFAULT_ARMS
    for arm in arms.values():
        settings = settings_of(arm, made[1], TOKENS)
        assert settings.samples.recipe == arm.recipe
        assert settings.samples.tokens == TOKENS


def test_interrupted_preparation_is_not_taken_for_a_trial(
    tmp_path: Path, made: tuple[Path, Settings, TableStore, list[str]]
) -> None:
    _, settings, store, _ = made
    wished = PrepareSettings(tokens=8192, sample_tokens=TOKENS, arms={"a": Arm(recipe="no_verify")})
    with pytest.raises(TrialError, match="--evaluation"):
        prepare(settings, store, tmp_path, wished, texts=["too little"])
    with pytest.raises(TrialError, match="--prepare"):
        _ = TrialFolder(tmp_path).facts

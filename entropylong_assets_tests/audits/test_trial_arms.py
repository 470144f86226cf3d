"""A trial's folder from a dataset's stored tables.

Failures looked for: an arm that is not the samples that the stage makes under the same recipe; an
arm under another rule that still packs the first rule's pairs; an evaluation text that samples
contain; a folder that looks complete but is not.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from entropylong_assets.audits.trial.arms import DEFAULT_ARMS, pack_arm, read_arms, settings_of
from entropylong_assets.audits.trial.folder import TrialError, TrialFolder
from entropylong_assets.audits.trial.plan import read_results
from entropylong_assets.audits.trial.prepare import prepare
from entropylong_assets.audits.trial.settings import Arm, TrialSettings
from entropylong_assets.audits.trial.stage import TRAINING_TRIAL_STAGE
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL
from entropylong_assets.audits.trial.tasks import TASKS
from entropylong_assets.audits.trial.training import Trainer
from entropylong_assets.cli.main import app
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.runner import RunError, run_job
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.report.proof import trial_table
from entropylong_assets.settings.section import Settings, SettingsError
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.checkpoints import PREFIX
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.stages.training_data.shards import make_shards
from entropylong_assets_tests.tiny_world import tiny_values

TOKENS = 1024


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str], tiny_corpus: Path
) -> tuple[Path, Settings, TableStore, list[str]]:
    """A settings file, and the dataset that was made by it, with samples of recipe `no_verify`."""
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
    file.write_text("ours: {recipe: calibrated, samples: {layout: grouped}}\nbase: {}\n")
    assert read_arms(file)["ours"].samples == {"layout": "grouped"}
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


@pytest.mark.long
def test_trial_runs_from_stored_tables_to_its_page(
    tmp_path: Path,
    made: tuple[Path, Settings, TableStore, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, _, store, _ = made
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    assert store.manifest(TRAINING_TRIAL) is None
    assert trial_table(store) is None
    arms = tmp_path / "arms.yaml"
    arms.write_text(
        "random: {recipe: random}\nno_verify: {recipe: no_verify}\nplain: {rule: plain}\n"
        "mixed: {recipe: entropylong, samples: {layout: grouped, fill: corpus}}\n"
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
    shown = trial_table(store)
    assert shown is not None
    assert "8,192 tokens of each arm, in samples of 4,096" in shown["note"]
    row = next(row for row in shown["rows"] if row[0] == "plain")
    cell = row[shown["head"].index("answers at 4K (nats)")]
    assert f"| {cell} |" in next(x for x in text.splitlines() if "`plain` less `random`" in x)
    seen = store.require(TRAINING_TRIAL).data_version
    again = CliRunner().invoke(app, command)
    # The report is not stale after a call that ran nothing.
    assert store.require(TRAINING_TRIAL).data_version == seen
    # A second trial over other samples, on the same items.
    other = [*command, "--prepare", "--evaluation", str(folder)]
    other[1] = str(tmp_path / "second")
    prepared = CliRunner().invoke(app, other)
    assert prepared.exit_code == 0, prepared.output
    second = TrialFolder(tmp_path / "second")
    assert second.evaluation_identity() == made_folder.evaluation_identity()
    assert second.facts.items == made_folder.facts.items
    assert "run 1 of" not in again.output


def trial_world(base: Path, folder: Path, **over: Any) -> tuple[Project, Path, TableStore]:
    """A copy of the dataset whose settings name a small trial: project, settings file, tables."""
    values = json.loads((base / "settings.json").read_text())
    # Another test publishes a trial beside the tables.
    ignored = shutil.ignore_patterns("training_trial")
    shutil.copytree(values["data_uri"], folder / "data", ignore=ignored)
    values["data_uri"] = str(folder / "data")
    values["trial"] = {
        "arms": {"random": {"recipe": "random"}, "plain": {"rule": "plain"}},
        "tokens": 4096,
        "sample_tokens": 2048,
        "seeds": [0],
        "evaluation": str(held_out_text(folder)),
        "items": 2,
        "natural": 2,
        "short_window": 64,
        "batch_tokens": 2048,
        "max_repeats": 9,
        **over,
    }
    file = folder / "settings.json"
    file.write_text(json.dumps(values))
    project = make_project(values)
    return project, file, open_store(project.dataset)


def counted_trainings(monkeypatch: pytest.MonkeyPatch, allowed: int) -> list[Any]:
    """Fills with a value per training from now on; the one after `allowed` fails."""
    trained: list[Any] = []
    train = Trainer.train

    def counted(self: Trainer, *args: Any) -> Any:
        if len(trained) == allowed:
            raise TrialError("stopped by the test")
        trained.append(args)
        return train(self, *args)

    monkeypatch.setattr(Trainer, "train", counted)
    return trained


def test_asset_resumes_and_shares_its_results_with_the_command(
    tmp_path: Path,
    made: tuple[Path, Settings, TableStore, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real asset: stopped after its first training, made again, then seen by the command."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    project, file, store = trial_world(made[0], tmp_path)
    stage, partition = TRAINING_TRIAL_STAGE, Partition(project.dataset, store)
    job = build_definitions(project).get_repository_def().get_job("dataset__trial")
    with dg.DagsterInstance.ephemeral() as instance:
        with monkeypatch.context() as patched:
            counted_trainings(patched, allowed=1)
            with pytest.raises(RunError, match="stopped by the test"):
                run_job(job, WHOLE, instance)
        assert store.manifest(TRAINING_TRIAL) is None
        with monkeypatch.context() as patched:
            trained = counted_trainings(patched, allowed=9)
            run_job(job, WHOLE, instance)
            assert len(trained) == 1, "a finished training was made again"
        (event,) = instance.fetch_materializations(
            dg.AssetKey(["dataset", "training_trial"]), limit=9
        ).records
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert "## 4,096 tokens per run, samples of 2,048" in str(metadata["page"].value)
        assert metadata["learnt_tokens"].value == 2 * 4096
        outcomes = store.check_outcomes(TRAINING_TRIAL)
        assert set(outcomes) == {check.name for check in stage.checks}
        assert all(outcomes[c.name].passed for c in stage.checks if not c.warns)
    assert not list(Path(store.folder(TRAINING_TRIAL)).glob(f"{PREFIX}*")), "samples are left"

    # What is stored is the mean of paired items.
    runs = {(r["arm"], r["tokens"]): r["result"] for r in stored_rows(store, "runs")}
    assert set(runs) == {("random", 0), ("random", 4096), ("plain", 4096)}
    rows = {(r["arm"], r["rival"], r["measure"]): r for r in stored_rows(store, "differences")}
    for rival, other in (("random", ("random", 4096)), ("start", ("random", 0))):
        ours, theirs = (
            np.array(json.loads(runs[key])["scores"]["short"]["all"])
            for key in (("plain", 4096), other)
        )
        row = rows["plain", rival, "short/all"]
        assert row["value"] == pytest.approx((ours - theirs).mean())
        assert (row["seeds"], row["items"]) == (1, len(ours))

    assert stale_reason(stage, partition) is None
    for change, reason in (
        ({"tokens": 2048}, "setting trial.tokens has changed"),
        ({"arms": {"random": Arm(recipe="random")}}, "setting trial.arms has changed"),
    ):
        trial = project.dataset.trial.model_copy(update=change)
        changed = project.dataset.model_copy(update={"trial": trial})
        assert stale_reason(stage, Partition(changed, store)) == reason

    # The command finds the same samples and every result, and publishes the same content.
    version = store.require(TRAINING_TRIAL).data_version
    counted_trainings(monkeypatch, allowed=0)
    page = tmp_path / "page.md"
    command = ["trial", str(tmp_path / "trial"), "-s", str(file), "--out", str(page)]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert page.read_text() == metadata["page"].value
    assert store.require(TRAINING_TRIAL).data_version == version
    assert stale_reason(stage, partition) is None
    with dg.DagsterInstance.get() as instance:  # to which the command reports
        key = dg.AssetKey(["dataset", "training_trial"])
        assert len(instance.fetch_materializations(key, limit=9).records) == 1


def stored_rows(store: TableStore, table: str) -> list[dict[str, Any]]:
    return store.read(TRAINING_TRIAL, WHOLE, table).to_dicts()


def test_trial_without_arms_is_skipped(
    tmp_path: Path, made: tuple[Path, Settings, TableStore, list[str]]
) -> None:
    project, _, store = trial_world(made[0], tmp_path, arms={})
    job = build_definitions(project).get_repository_def().get_job("dataset__trial")
    with dg.DagsterInstance.ephemeral() as instance:
        run_job(job, WHOLE, instance)
    assert store.manifest(TRAINING_TRIAL) is None


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ({"arms": {"a": {"recipe": "none_such"}}}, "samples.recipe"),
        ({"arms": {"a": {"samples": {"layout": "wild"}}}}, "samples.layout"),
        ({"arms": {"a": {"rule": "none_such"}}}, "verification.compared_rules"),
        ({"arms": {"a": {"colour": "red"}}}, "trial.arms.a.colour: no such setting"),
        ({"arms": {"../a": {}}}, "lower-case letters"),
        ({"arms": {"a": {}}, "sample_tokens": 4096}, "roots.max_tokens"),
        ({"seeds": [1, 1]}, "different numbers"),
    ],
)
def test_settings_of_a_trial_are_refused_in_one_line(trial: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        make_project({"trial": trial, "roots": {"max_tokens": 4096}})


def test_reordered_samples_are_another_trial(
    tmp_path: Path, made: tuple[Path, Settings, TableStore, list[str]]
) -> None:
    """Equal counts of other samples must not take over the results of the first."""
    seen = set()
    for order in ("shuffle", "sequence"):
        arms = {"a": {"rule": "plain", "samples": {"order": order}}}
        (tmp_path / order).mkdir()
        project, _, store = trial_world(made[0], tmp_path / order, arms=arms)
        prepare(project.dataset, store, tmp_path / order / "trial")
        folder = TrialFolder(tmp_path / order / "trial")
        seen.add((folder.identity, folder.facts.arms["a"]["samples"]))
    assert len(seen) == 2
    assert len({samples for _, samples in seen}) == 1


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
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "too little"}\n')
    trial = TrialSettings(
        tokens=8192,
        sample_tokens=TOKENS,
        arms={"a": Arm(recipe="no_verify")},
        evaluation=str(text),
    )
    with pytest.raises(TrialError, match="--evaluation"):
        prepare(settings.model_copy(update={"trial": trial}), store, tmp_path)
    with pytest.raises(TrialError, match="--prepare"):
        _ = TrialFolder(tmp_path).facts

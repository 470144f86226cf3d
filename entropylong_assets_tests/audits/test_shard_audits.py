"""The audits on the tiny world, compared with oracles of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from entropylong_assets.audits.audit_tables import AuditTables
from entropylong_assets.audits.evidence import write_evidence
from entropylong_assets.audits.planted import PlantedFigures
from entropylong_assets.audits.stages import (
    CROSS_MODEL_AUDIT_STAGE,
    LONG_RANGE_AUDIT_STAGE,
    NULL_CALIBRATION_STAGE,
)
from entropylong_assets.audits.tables import CROSS_MODEL_AUDIT, LONG_RANGE_AUDIT, NULL_CALIBRATION
from entropylong_assets.orchestration.local_run import run_audits
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.settings import BUILT_IN_RECIPES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests import reference
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_project, tiny_settings

AUDITS = (NULL_CALIBRATION_STAGE, CROSS_MODEL_AUDIT_STAGE, LONG_RANGE_AUDIT_STAGE)


@dataclass(frozen=True)
class AuditedWorld:
    """A copy of the tiny world with its audits. Read only."""

    settings: Settings
    store: TableStore
    shards: tuple[str, ...]
    corpus: Path
    models: tuple[str, str]

    @property
    def audit(self) -> dict[str, Any]:
        """Settings of the audits."""
        values: dict[str, Any] = self.settings.audit.model_dump()
        return values

    def partitions(self, settings: Settings | None = None) -> Iterator[Partition]:
        """Partition of each shard, under other settings of the same data."""
        chosen = settings or self.settings
        for shard in self.shards:
            yield Partition(chosen, open_store(chosen), shard)

    def under(self, **over: Any) -> Settings:
        """Other settings of the same data. over: sections of a settings file."""
        data = Path(self.settings.data_uri)
        return tiny_settings(self.corpus, data, self.models, **{"audit": self.audit, **over})


@pytest.fixture(scope="module")
def audited(
    world: World, tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]
) -> AuditedWorld:
    data = tmp_path_factory.mktemp("audited") / "data"
    shutil.copytree(world.settings.data_uri, data)
    # The second model is the first one: its scores of the same text are known.
    audit = {"roots": 4, "model": tiny_models[0], "short_tokens": 64}
    audit |= {"segment_tokens": 8, "segment_pairs": 2}
    settings = tiny_settings(world.corpus, data, tiny_models, audit=audit)
    store = open_store(settings)
    audited_world = AuditedWorld(settings, store, world.shards, world.corpus, tiny_models)
    for partition in audited_world.partitions():
        for stage in AUDITS:
            materialize(stage, partition)
            list(run_checks(stage, partition))
    return audited_world


def read(world: AuditedWorld, tables: TableSet[Any], table: str) -> pl.DataFrame:
    return world.store.read_all(tables, world.shards, table)


def test_every_check_of_the_audits_passes(audited: AuditedWorld) -> None:
    results = [
        result
        for partition in audited.partitions()
        for stage in AUDITS
        for result in run_checks(stage, partition)
    ]
    assert len(results) == 6 * len(audited.shards)
    failed = [r.check.name for r in results if not r.passed and r.check.blocking]
    assert failed == []


def test_null_controls_are_of_their_kind(audited: AuditedWorld) -> None:
    trials = read(audited, NULL_CALIBRATION, "trials")
    pairs = read(audited, VERIFIED_DEPENDENCIES, "pairs")
    nominated: dict[str, set[str]] = {}
    for root_id, chunk_id in pairs.select("root_id", "chunk_id").iter_rows():
        nominated.setdefault(root_id, set()).add(chunk_id)
    accepted = set(pairs.filter("accepted").select("root_id", "anchor", "chunk_id").iter_rows())
    stored = read(audited, VERIFIED_DEPENDENCIES, "control_contexts")
    lengths = {r: len(t) for r, t in stored.select("root_id", "token_ids").iter_rows()}
    counts = dict.fromkeys(("random", "topical", "shuffled"), 0)
    for row in trials.iter_rows(named=True):
        root_id, kind, chunks = row["root_id"], row["kind"], set(row["chunk_ids"])
        counts[kind] += 1
        assert not any(c.startswith(root_id) for c in chunks), "a chunk of the root itself"
        if kind == "shuffled":
            assert {(root_id, row["anchor"], c) for c in chunks} <= accepted
        else:
            assert not chunks & nominated[root_id], "a chunk that an anchor retrieved"
            assert row["n_tokens"] == pytest.approx(lengths[root_id], rel=0.3)
        if kind == "topical":
            documents = {c.rpartition("-")[0] for c in nominated[root_id]}
            assert not {c.rpartition("-")[0] for c in chunks} & documents
    assert counts["random"] > 20
    assert counts["topical"] + counts["shuffled"] > 0


def test_random_controls_are_not_the_stored_ones(audited: AuditedWorld) -> None:
    trials = read(audited, NULL_CALIBRATION, "trials").filter(kind="random")
    controls = read(audited, VERIFIED_DEPENDENCIES, "control_contexts")
    known = {(r, tuple(c)) for r, c in controls.select("root_id", "chunk_ids").iter_rows()}
    fresh = {(r, tuple(c)) for r, c in trials.select("root_id", "chunk_ids").iter_rows()}
    assert fresh
    assert len(fresh - known) > len(fresh) // 2


def test_null_scores_equal_the_reference(
    audited: AuditedWorld, tiny_models: tuple[str, str]
) -> None:
    """Random controls, scored again in NumPy from their text."""
    trials = read(audited, NULL_CALIBRATION, "trials").filter(kind="random")
    tokenizer, model = load_tokenizer(audited.settings.scoring), reference.Llama(tiny_models[0])
    table = open_table(audited.store)
    roots = dict(read(audited, ENTROPY_SCORES, "roots").select("root_id", "token_ids").iter_rows())
    checked = 0
    for row in trials.unique(["root_id", "number"], maintain_order=True).head(3).to_dicts():
        texts = dict(
            table.fetch(row["chunk_ids"], ["chunk_id", "text"])
            .select("chunk_id", "text")
            .iter_rows()
        )
        ids: list[int] = []
        for chunk_id in row["chunk_ids"]:
            ids += [*tokenizer.encode([texts[chunk_id]])[0], *tokenizer.separator_ids]
        n = len(tokenizer.separator_ids)
        context = [*ids[: row["n_tokens"] - n], *tokenizer.separator_ids]
        before = [*tokenizer.bos_ids, *context]
        entropies, _ = model.scores([*before, *roots[row["root_id"]][: row["anchor"] + 1]])
        assert row["entropy_context"] == pytest.approx(entropies[-1], abs=1e-4)
        checked += 1
    assert checked == 3


def test_the_same_model_agrees_with_itself(audited: AuditedWorld) -> None:
    """With the first model as its own second, the plain rule gives the same verdicts."""
    rows = read(audited, CROSS_MODEL_AUDIT, "pairs")
    assert rows["accepted_by"].list.contains("plain").sum() > 3
    # Tokenizing the text again may give other tokens: nearly all gains are the same.
    same = (rows["gain"] - rows["second_gain"]).abs() < 1e-3
    assert same.sum() / len(same) > 0.8
    epsilon = audited.settings.verification.epsilon
    assert rows.filter(same)["holds"].to_list() == (rows.filter(same)["gain"] > epsilon).to_list()
    for shard in audited.shards:
        correlation = audited.store.summary(CROSS_MODEL_AUDIT, shard).gain_rank_correlation
        assert correlation is not None
        assert correlation > 0.8


def test_audits_are_stale_only_under_settings_that_they_read(audited: AuditedWorld) -> None:
    """An audit takes minutes; it must not run again for a setting that does not concern it."""

    def stale_under(**over: Any) -> set[str]:
        (*_, partition) = audited.partitions(audited.under(**over))
        return {stage.name for stage in AUDITS if stale_reason(stage, partition) is not None}

    null, second, far = (stage.name for stage in AUDITS)
    assert stale_under() == set()
    assert stale_under(samples={"tokens": 8192, "layout": "grouped"}) == set()
    assert stale_under(audit={**audited.audit, "pairs": 1}) == {second}
    assert stale_under(audit={**audited.audit, "model": ""}) == {second}
    assert stale_under(audit={**audited.audit, "controls": 3}) == {null}
    assert stale_under(audit={**audited.audit, "roots": 3}) == {null, second, far}
    assert stale_under(audit={**audited.audit, "recipes": ["calibrated"]}) == {far}
    assert stale_under(samples={"order": "sequence"}) == {far}
    assert stale_under(samples={"meta_chunk_tokens": 64}) == {far}
    assert stale_under(verification={"epsilon": 0.5}) == {null, second}
    assert stale_under(verification={"rule": "plain"}) == {null, far}
    assert stale_under(retrieval={"max_containment": 0.5}) == {null, far}
    assert stale_under(retrieval={"half_window": 9}) == set()
    without_pieces = {**audited.audit, "recipes": ["calibrated", "random"]}
    far_only = stale_under(audit=without_pieces, samples={"meta_chunk_tokens": 64})
    assert far_only == {far}


def test_audits_depend_on_the_index_of_the_candidates(
    audited: AuditedWorld, tmp_path: Path
) -> None:
    """Held-out controls and control passages are drawn from it."""
    data = tmp_path / "data"
    shutil.copytree(audited.settings.data_uri, data)
    settings = tiny_settings(audited.corpus, data, audited.models, audit=audited.audit)
    partition = Partition(settings, open_store(settings), audited.shards[0])
    manifest = data / "dataset" / "candidate_contexts" / partition.shard / "manifest.json"
    before = manifest.read_text(encoding="utf-8")
    tag = audited.store.summary(CANDIDATE_CONTEXTS, partition.shard).index
    manifest.write_text(before.replace(tag, "another"), encoding="utf-8")
    reasons = [stale_reason(stage, partition) for stage in AUDITS]
    assert reasons == ["index has changed", None, "index has changed"]


def test_up_to_date_audits_are_not_run_again(audited: AuditedWorld, tmp_path: Path) -> None:
    """An audit that an interrupted run had finished, or that does not depend on a changed setting,
    is not run again."""
    data = tmp_path / "data"
    shutil.copytree(audited.settings.data_uri, data)
    audit = {**audited.audit, "pairs": 1}
    project = tiny_project(audited.corpus, data, audited.models, audit=audit)
    store, shard = open_store(project.dataset), audited.shards[0]
    shutil.rmtree(data / "dataset" / "null_calibration" / audited.shards[1])
    before = {stage.name: store.require(stage.tables, shard).data_version for stage in AUDITS}
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_audits(project, project.dataset, instance) == len(audited.shards)
        evaluations = instance.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        )
        assert run_audits(project, project.dataset, instance) == 0
    changed = {
        stage.name
        for stage in AUDITS
        if store.require(stage.tables, shard).data_version != before[stage.name]
    }
    assert changed == {CROSS_MODEL_AUDIT.name}
    assert store.shards(NULL_CALIBRATION) == sorted(audited.shards)
    names = [
        record.event_log_entry.dagster_event.asset_check_evaluation_data.check_name
        for record in evaluations
        # Checks of audits that are up to date are reported without a run.
        if record.run_id and record.event_log_entry.dagster_event
    ]
    assert names.count("second_gains_recomputed") == len(audited.shards)
    assert names.count("null_gains_recomputed") == 1


def test_without_a_second_model_the_audit_is_skipped_with_a_reason(
    audited: AuditedWorld, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(audited.settings.data_uri, data)
    settings = tiny_settings(audited.corpus, data, audited.models)
    assert settings.audit.model == ""
    partition = Partition(settings, open_store(settings), audited.shards[0])
    manifest = materialize(CROSS_MODEL_AUDIT_STAGE, partition).manifest
    assert manifest.tables["pairs"].rows == 0
    assert manifest.determinants["second_model"] is None
    skipped = partition.store.summary(CROSS_MODEL_AUDIT, partition.shard).skipped
    assert skipped is not None
    assert "audit.model" in skipped


def test_a_recipe_whose_rule_was_not_evaluated_is_left_out_and_named(
    audited: AuditedWorld, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(audited.settings.data_uri, data)
    audit = {**audited.audit, "recipes": ["entropylong", "no_verify"]}
    verification = {"compared_rules": ["calibrated"]}
    settings = tiny_settings(
        audited.corpus, data, audited.models, audit=audit, verification=verification
    )
    partition = Partition(settings, open_store(settings), audited.shards[0])
    lines: list[str] = []
    materialize(LONG_RANGE_AUDIT_STAGE, partition, log=lines.append)
    (line,) = [line for line in lines if line.startswith("recipes left out: entropylong. ")]
    assert line.endswith("add plain to verification.compared_rules")
    windows = partition.store.read(LONG_RANGE_AUDIT, partition.shard, "windows")
    assert set(windows["recipe"]) == {"no_verify"}


def test_recipes_are_compared_on_the_same_roots(audited: AuditedWorld) -> None:
    windows = read(audited, LONG_RANGE_AUDIT, "windows")
    assert {*windows["recipe"], "genuine"} == set(BUILT_IN_RECIPES)
    by_recipe = {k[0]: set(v["root_id"]) for k, v in windows.group_by("recipe")}
    assert len(by_recipe["calibrated"]) >= 3
    for recipe, roots in by_recipe.items():
        # Rule `genuine` accepts few pairs of so few words, and none of some roots.
        assert roots <= by_recipe["calibrated"], recipe
        assert roots == by_recipe["calibrated"] or recipe == "genuine", recipe
    budget = dict(
        windows.filter(recipe="calibrated").select("root_id", "context_tokens").iter_rows()
    )
    longest = max(len(t) for t in read(audited, VERIFIED_DEPENDENCIES, "contexts")["token_ids"])
    for row in windows.iter_rows(named=True):
        assert row["context_tokens"] <= max(budget[row["root_id"]], longest)


def test_in_place_scores_equal_the_reference(
    audited: AuditedWorld, tiny_models: tuple[str, str]
) -> None:
    """The whole window rebuilt from the stored samples, scored in NumPy."""
    model = reference.Llama(tiny_models[0])
    anchors = read(audited, LONG_RANGE_AUDIT, "anchors").filter(recipe="calibrated")
    segments = read(audited, LONG_CONTEXT_SAMPLES, "segments").sort("sample_id", "segment")
    samples = dict(
        read(audited, LONG_CONTEXT_SAMPLES, "samples").select("sample_id", "input_ids").iter_rows()
    )
    bos = list(load_tokenizer(audited.settings.scoring).bos_ids)
    checked = 0
    for root_id in anchors["root_id"].unique(maintain_order=True).head(3):
        parts = segments.filter(
            (pl.col("root_id") == root_id) & pl.col("role").is_in(["verified", "root"])
        )
        ids = list(bos)
        start = 0
        for row in parts.iter_rows(named=True):
            start = len(ids)
            ids += samples[row["sample_id"]][row["start"] : row["end"]]
        entropies, surprisals = model.scores(ids)
        for row in anchors.filter(root_id=root_id).iter_rows(named=True):
            at = start + row["anchor"]
            assert row["entropy_in_place"] == pytest.approx(entropies[at], abs=2e-4)
            assert row["surprisal_in_place"] == pytest.approx(surprisals[at], abs=5e-4)
            checked += 1
    assert checked > 5


def test_means_are_those_of_the_rows(audited: AuditedWorld) -> None:
    for shard in audited.shards:
        anchors = audited.store.read(LONG_RANGE_AUDIT, shard, "anchors")
        shown = audited.store.read(LONG_RANGE_AUDIT, shard, "recipes")
        roots = anchors.group_by("root_id").agg(pl.col("recipe").n_unique())
        common = roots.filter(recipe=anchors["recipe"].n_unique())
        for recipe in anchors["recipe"].unique(maintain_order=True):
            mine = anchors.filter(recipe=recipe).join(common, "root_id", "semi")
            fall = (mine["surprisal_random"] - mine["surprisal_in_place"]).cast(pl.Float64)
            row = shown.filter(recipe=recipe, measure="surprisal_drop_over_random").to_dicts()[0]
            assert row["value"] == pytest.approx(float(np.mean(fall.to_numpy())), abs=1e-5)
            if len(common) == 1:
                continue  # there is no interval
            assert row["low"] <= row["value"] <= row["high"]


def test_the_evidence_shows_every_recipe_rule_and_kind(audited: AuditedWorld) -> None:
    page = write_evidence(
        AuditTables(audited.store, audited.shards, audited.settings),
        date="2026-01-01",
        description=[("data", "a|b"), ("separator", "\n\n")],
        second_model="second",
        planted=PlantedFigures([], pl.DataFrame({"form": ["ship"], "facts": [3]}), 1.5, 0.25),
        seconds=90,
    )
    lines = page.splitlines()
    for recipe in BUILT_IN_RECIPES:
        assert any(line.startswith(f"| {recipe} | ") for line in lines), recipe
    assert (
        "| contexts | trials | pass rule plain | pass rule calibrated | pass rule genuine |"
        in lines
    )
    trials = len(read(audited, NULL_CALIBRATION, "trials").filter(kind="random"))
    assert any(line.startswith(f"| random | {trials} | ") for line in lines)
    pairs = read(audited, CROSS_MODEL_AUDIT, "pairs")
    plain_alone = pairs.filter(pl.col("accepted_by") == ["plain"])
    assert any(
        line.startswith(f"| accepted by plain alone | {len(plain_alone)} |") for line in lines
    )
    assert "| data | a/b |" in lines
    assert r"| separator | \n\n |" in lines
    assert "| ship | 3 |" in lines
    widths = [line.count("|") for line in lines if line.startswith("|")]
    assert min(widths) >= 3

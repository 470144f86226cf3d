"""The audits through real Dagster runs on the tiny world, with oracles of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from entropylong_assets.orchestration.audit_run import run_audits
from entropylong_assets.orchestration.jobs import AUDITS
from entropylong_assets.settings.model import make_settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.samples.recipes import RECIPES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests import reference
from entropylong_assets_tests.conftest import World


@pytest.fixture(scope="module")
def audited(
    world: World, tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]
) -> Iterator[World]:
    """A copy of the tiny world with its audits, made once and asked for again."""
    data = tmp_path_factory.mktemp("audited") / "data"
    shutil.copytree(world.settings.data_uri, data)
    values = world.settings.model_dump()
    values |= {"data_uri": str(data)}
    # The second model is the same one: what it says of itself is known.
    values["audit"] |= {
        "roots": 4,
        "model": tiny_models[0],
        "short_tokens": 64,
        "segment_tokens": 8,
        "segment_pairs": 2,
    }
    settings = make_settings(values.pop("profile"), values)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_audits(settings, instance) == len(world.shards)
        store = TableStore(settings.data_uri)
        before = {(a, s): store.require(a, s).data_version for a in AUDITS for s in world.shards}
        assert run_audits(settings, instance) == 0, "an audit that is current was made again"
        assert before == {
            (a, s): store.require(a, s).data_version for a in AUDITS for s in world.shards
        }
        yield World(settings, store, instance, world.shards, world.corpus)


def read(world: World, asset: str, table: str) -> pl.DataFrame:
    return pl.concat(world.store.read(asset, shard, table) for shard in world.shards)


def test_every_check_of_the_audits_passed(audited: World) -> None:
    records = audited.instance.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    )
    found = {}
    for record in records:
        event = record.event_log_entry.dagster_event
        assert event is not None
        check = event.asset_check_evaluation_data
        found[check.check_name, check.partition] = check.passed or not check.blocking
    assert len(found) == 6 * len(audited.shards)
    assert all(found.values()), found


def test_null_controls_are_what_they_say(audited: World) -> None:
    trials = read(audited, "null_calibration", "trials")
    pairs = read(audited, "verified_dependencies", "pairs")
    nominated: dict[str, set[str]] = {}
    for root_id, chunk_id in pairs.select("root_id", "chunk_id").iter_rows():
        nominated.setdefault(root_id, set()).add(chunk_id)
    accepted = set(pairs.filter("accepted").select("root_id", "anchor", "chunk_id").iter_rows())
    stored = read(audited, "verified_dependencies", "control_contexts")
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


def test_random_controls_are_not_the_stored_ones(audited: World) -> None:
    trials = read(audited, "null_calibration", "trials").filter(kind="random")
    controls = read(audited, "verified_dependencies", "control_contexts")
    known = {(r, tuple(c)) for r, c in controls.select("root_id", "chunk_ids").iter_rows()}
    fresh = {(r, tuple(c)) for r, c in trials.select("root_id", "chunk_ids").iter_rows()}
    assert fresh
    assert len(fresh - known) > len(fresh) // 2


def test_null_scores_are_the_reference_s(audited: World, tiny_models: tuple[str, str]) -> None:
    """A random control, scored again in NumPy from its text."""
    from entropylong_assets.stages.embeddings.table import open_table

    trials = read(audited, "null_calibration", "trials").filter(kind="random")
    tokenizer, model = load_tokenizer(audited.settings.scoring), reference.Llama(tiny_models[0])
    table = open_table(audited.settings.data_uri)
    roots = dict(
        read(audited, "entropy_scores", "roots").select("root_id", "token_ids").iter_rows()
    )
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


def test_the_same_model_agrees_with_itself(audited: World) -> None:
    """With the first model as its own second, every verdict of the plain rule must come back."""
    rows = read(audited, "cross_model_audit", "pairs")
    assert rows["accepted_plain"].sum() > 3
    # Text re-tokenised may differ: nearly all gains are the same.
    same = (rows["gain"] - rows["second_gain"]).abs() < 1e-3
    assert same.mean() > 0.8
    epsilon = audited.settings.verification.epsilon
    assert rows.filter(same)["holds"].to_list() == (rows.filter(same)["gain"] > epsilon).to_list()
    for shard in audited.shards:
        summary = audited.store.require("cross_model_audit", shard).summary
        assert summary["gain_rank_correlation"] > 0.8


def test_what_is_current_is_not_audited_again(audited: World, tmp_path: Path) -> None:
    """An audit takes minutes; one that a killed run had finished, or that a setting does not
    touch, stays as it is."""
    data = tmp_path / "data"
    shutil.copytree(audited.settings.data_uri, data)
    values = audited.settings.model_dump() | {"data_uri": str(data)}
    values["audit"] |= {"pairs": 1}  # of the second model's audit alone
    settings, store = make_settings(values.pop("profile"), values), TableStore(str(data))
    shard = audited.shards[0]
    shutil.rmtree(data / "null_calibration" / audited.shards[1])
    before = {audit: store.require(audit, shard).data_version for audit in AUDITS}
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_audits(settings, instance) == len(audited.shards)
        checks = instance.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        )
    changed = {a for a in AUDITS if store.require(a, shard).data_version != before[a]}
    assert changed == {"cross_model_audit"}
    assert store.shards("null_calibration") == sorted(audited.shards)
    names = [record.event_log_entry.dagster_event.asset_check_evaluation_data.check_name
             for record in checks if record.event_log_entry.dagster_event]  # fmt: skip
    assert names.count("second_gains_recomputed") == len(audited.shards)
    assert names.count("null_gains_recomputed") == 1


def test_without_a_second_model_the_audit_says_so(world: World, tmp_path: Path) -> None:
    from entropylong_assets.definitions import build_definitions

    data = tmp_path / "data"
    for asset in ("verified_dependencies", "entropy_scores", "candidate_contexts"):
        shutil.copytree(Path(world.settings.data_uri) / asset, data / asset)
    settings = world.settings.model_copy(update={"data_uri": str(data)})
    assert settings.audit.model == ""
    shard = world.shards[0]
    job = build_definitions(settings).get_repository_def().get_job("audit")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus_shard", [shard])
        done = job.execute_in_process(
            instance=instance,
            partition_key=shard,
            asset_selection=[dg.AssetKey("cross_model_audit")],
        )
    assert done.success
    manifest = TableStore(str(data)).require("cross_model_audit", shard)
    assert manifest.tables["pairs"].rows == 0
    assert "audit.model" in manifest.summary["skipped"]


def test_recipes_are_compared_on_the_same_roots(audited: World) -> None:
    windows = read(audited, "long_range_audit", "windows")
    assert set(windows["recipe"]) == set(RECIPES)
    by_recipe = {k[0]: set(v["root_id"]) for k, v in windows.group_by("recipe")}
    assert len(by_recipe["calibrated"]) >= 3
    for recipe, roots in by_recipe.items():
        assert roots == by_recipe["calibrated"], recipe
    budget = dict(
        windows.filter(recipe="calibrated").select("root_id", "context_tokens").iter_rows()
    )
    longest = max(len(t) for t in read(audited, "verified_dependencies", "contexts")["token_ids"])
    for row in windows.iter_rows(named=True):
        assert row["context_tokens"] <= max(budget[row["root_id"]], longest)


def test_in_place_scores_are_the_reference_s(audited: World, tiny_models: tuple[str, str]) -> None:
    """The whole window rebuilt from the stored samples, scored in NumPy."""
    model = reference.Llama(tiny_models[0])
    anchors = read(audited, "long_range_audit", "anchors").filter(recipe="calibrated")
    segments = read(audited, "long_context_samples", "segments").sort("sample_id", "segment")
    samples = dict(
        read(audited, "long_context_samples", "samples")
        .select("sample_id", "input_ids")
        .iter_rows()
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


def test_means_are_those_of_the_rows(audited: World) -> None:
    for shard in audited.shards:
        anchors = audited.store.read("long_range_audit", shard, "anchors")
        shown = audited.store.read("long_range_audit", shard, "recipes")
        for recipe in RECIPES:
            mine = anchors.filter(recipe=recipe)
            fall = (mine["surprisal_random"] - mine["surprisal_in_place"]).cast(pl.Float64)
            row = shown.filter(recipe=recipe, measure="surprisal_drop_over_random").to_dicts()[0]
            assert row["value"] == pytest.approx(float(np.mean(fall.to_numpy())), abs=1e-5)
            assert row["low"] <= row["value"] <= row["high"]

"""Audits in the report: figures counted by hand, and none of dependencies that were replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropylong_assets.audits.trial.folder import TrialFacts
from entropylong_assets.audits.trial.record import publish
from entropylong_assets.report.proof import gather_proof, trial_table
from entropylong_assets.report.proof_charts import proof_charts
from entropylong_assets.report.run import gather_run, open_dataset
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.audits.trial_results import result
from entropylong_assets_tests.report.runs import (
    SHARDS,
    byte_tokenizer,
    run_settings,
    write_audits,
    write_run,
)


def test_gather_proof_gives_figures_counted_by_hand(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    store = write_run(settings)
    write_audits(store, SHARDS[0])
    figures, charts = gather_proof(store, SHARDS, settings)
    by_name = {name: value for name, value, _ in figures}
    assert by_name["shards with null calibration"] == "1 of 2"
    assert by_name["roots with null calibration"] == 2
    # The calibrated rule accepts no random context, so that its lift is not bounded.
    assert by_name["acceptance of retrieved over random contexts (lift)"] is None
    assert by_name["second model"] == "other<b>@2"
    holds = {
        name.removesuffix(" that hold in the second model"): value
        for name, value in by_name.items()
        if name.endswith(" that hold in the second model")
    }
    assert holds == {
        "pairs accepted by plain and calibrated": 0.5,
        "pairs accepted by plain alone": 0.0,
        "pairs accepted by no rule": 0.0,
    }
    assert by_name["rank correlation of gains"] == pytest.approx(1.0)
    by_chance = {(row["kind"], row["rule"]): row for row in charts["by_chance"]}
    assert by_chance["random", "plain"]["rate"] == pytest.approx(0.25)
    assert by_chance["random", "calibrated"]["rate"] == 0.0
    assert by_chance["random", "plain"]["is_rough"], "two roots say little of their correlation"
    assert ("topical", "plain") not in by_chance  # no such trial: no share of nothing
    recipes = {(row["recipe"], row["measure"]): row for row in charts["recipes"]}
    drop = recipes["calibrated", "surprisal_drop_over_random"]
    assert (drop["value"], drop["roots"]) == (pytest.approx(1.5), 2)
    assert drop["low"] < 1.5 < drop["high"]
    assert recipes["random", "surprisal_drop_over_random"]["value"] == 0.0
    assert recipes["calibrated", "key_token_density"]["value"] == pytest.approx(0.05)


def test_gather_proof_ignores_audits_of_older_dependencies(tmp_path: Path) -> None:
    """A shard that was verified again must not be shown with the figures of its old pairs."""
    settings = run_settings(tmp_path)
    store = write_run(settings)
    write_audits(store, SHARDS[0], verified="0" * 16)
    assert gather_proof(store, SHARDS, settings) == ([], {"by_chance": [], "recipes": []})


def test_proof_charts_have_every_row_and_share_their_scale(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    store = write_run(settings)
    nothing = gather_proof(store, SHARDS, settings)[1]
    assert proof_charts([nothing]) == []
    write_audits(store, SHARDS[0])
    audited = gather_proof(store, SHARDS, settings)[1]
    charts = proof_charts([audited, nothing])
    assert [len(chart["specs"]) for chart in charts] == [2, 2, 2, 2]

    def points(spec: dict[str, object]) -> list[dict[str, object]]:
        layers = spec["layer"]
        assert isinstance(layers, list)
        return layers[-1]["data"]["values"]

    def domain(spec: dict[str, object]) -> list[float]:
        layers = spec["layer"]
        assert isinstance(layers, list)
        return layers[-1]["encoding"]["x"]["scale"]["domain"]

    # A dataset beside itself has equal scales; one without audits draws nothing.
    for chart in charts:
        assert chart["specs"][1] is None
    whisker = charts[0]["specs"][0]["layer"][1]
    assert whisker["encoding"]["strokeDash"]["condition"]["test"] == "datum.is_rough"
    assert all(row["is_rough"] for row in whisker["data"]["values"])
    assert "assumes a correlation of 0.2 within a root" in charts[0]["caption"]
    for chart in proof_charts([audited, audited]):
        first, second = chart["specs"]
        assert domain(first) == domain(second)
    assert {row["name"] for row in points(charts[1]["specs"][0])} == {"calibrated", "random"}
    # A recipe none of whose windows had room for a pair of segments has no such score.
    (score,) = points(charts[3]["specs"][0])
    assert (score["name"], score["value"]) == ("calibrated", 0.125)
    assert len(points(charts[0]["specs"][0])) == len(audited["by_chance"])


def publish_trial(store: TableStore, version: str) -> None:
    """A trial whose differences can be worked out by hand, made from dependencies of a version."""
    scores = {"random": [-2.0, -3.0], "no_verify": [-2.0, -3.5], "genuine": [-1.5, -2.4]}
    results = [result(arm, 0, answers, [1.0]) for arm, answers in scores.items()]
    facts = TrialFacts(model="m", vocab_size=9, pad_id=0, sample_tokens=8192, arms={})
    inputs = {"inputs": {VERIFIED_DEPENDENCIES.name: {SHARDS[0]: version}}}
    publish(store, inputs, facts, results)


def test_trial_s_table_has_paired_differences_from_the_first_rival(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    store = write_run(settings)
    assert trial_table(store) is None
    publish_trial(store, store.require(VERIFIED_DEPENDENCIES, SHARDS[0]).data_version)
    shown = trial_table(store)
    assert shown is not None
    assert shown["head"] == ["arm", "answers at 8K (nats)", "loss on short documents"]
    assert [row[0] for row in shown["rows"]] == ["genuine", "no_verify"]
    # Differences 0 and -0.5; 0.5 and 0.6: half widths 12.706 standard errors of two items.
    assert [row[1] for row in shown["rows"]] == [
        "+0.5500 (-0.0853 to +1.1853)",
        "-0.2500 (-3.4266 to +2.9266)",
    ]
    assert "1,000 tokens of each arm" in shown["note"]
    assert "less random" in shown["note"]
    source = open_dataset(settings, store)
    page, _ = gather_run(source, "a", {}, byte_tokenizer)
    assert page["trial"] == shown


def test_trial_of_older_dependencies_is_not_shown(tmp_path: Path) -> None:
    store = write_run(run_settings(tmp_path))
    publish_trial(store, "0" * 16)
    assert trial_table(store) is None

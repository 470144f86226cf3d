"""Rules and screens by name: the built-in ones, and those of other packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import SettingsError, fingerprint
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.entropy import screener
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.registry import SCREENS, evaluated_rules
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE as STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.extensions import installed
from entropylong_assets_tests.stages.verification.one_shard import copy_of, with_verification


class LikelierThanControls:
    """A rule of another package: the true token becomes likelier than given the controls."""

    needs_controls = True
    gain = "gain"
    settings = ("controls",)

    def accepts(self, _: VerificationSettings) -> pl.Expr:
        return pl.col("surprisal_context") < pl.col("surprisal_control")

    def reason(self, _: VerificationSettings) -> pl.Expr:
        return pl.lit("not_likelier")


class ExactScreen:
    """A scorer of another package's screen, which is as exact as the scoring model."""

    def __init__(self, model: Any, pack_tokens: int | None) -> None:
        from entropylong_assets.stages.entropy.engine import PackedScorer

        self.scorer = PackedScorer(model, pack_tokens=pack_tokens)

    def score(
        self, requests: Sequence[ScoringRequest], on_progress: Any = lambda _: None
    ) -> list[PositionScores]:
        return self.scorer.score(requests, on_progress)


LIKELIER = LikelierThanControls()


@pytest.fixture(autouse=True)
def other_package() -> Iterator[None]:
    """An installed package that has this rule and this screen."""
    with installed(
        EntryPoint("likelier", f"{__name__}:LIKELIER", "entropylong_assets.rules"),
        EntryPoint("exact", f"{__name__}:ExactScreen", "entropylong_assets.screens"),
    ):
        yield


def test_names_are_checked_when_settings_are_read() -> None:
    names = ("genuine", "plain", "likelier")
    settings = VerificationSettings(rule="likelier", screen="exact", compared_rules=names)
    assert settings.compared_rules == ("plain", "genuine", "likelier")
    for field in ("rule", "screen"):
        with pytest.raises(SettingsError, match=rf"verification\.{field}: no {field} 'x'; there"):
            make_project({"verification": {field: "x"}})
    with pytest.raises(SettingsError, match=r"compared_rules\.1: no rule 'x'; there are plain"):
        make_project({"verification": {"compared_rules": ["plain", "x"]}})


@pytest.mark.parametrize("rule", ["calibrated", "likelier"])
@pytest.mark.parametrize("controls", [0, 1])
def test_a_rule_that_needs_controls_is_refused_without(rule: str, controls: int) -> None:
    with pytest.raises(SettingsError, match=f"controls must be at least 2 with rule '{rule}'"):
        make_project({"verification": {"rule": rule, "controls": controls}})
    compared = {"rule": "plain", "controls": controls, "compared_rules": [rule]}
    make_project({"verification": compared})


def test_rules_are_evaluated_once_and_in_one_order() -> None:
    """The order of settings, or the rule in force, must not change rows and their versions."""
    for rule, compared in (
        ("plain", ("calibrated", "likelier")),
        ("calibrated", ("likelier", "plain")),
        ("likelier", ("plain", "calibrated", "likelier")),
    ):
        settings = VerificationSettings(rule=rule, compared_rules=compared)
        assert list(evaluated_rules(settings)) == ["plain", "calibrated", "likelier"]
    one, other = (
        VerificationSettings(compared_rules=names, excluded_anchors=kinds)
        for names, kinds in (
            (("plain", "genuine"), ("url", "import")),
            (("genuine", "plain"), ("import", "url")),
        )
    )
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("score", [None, float("nan")])
def test_no_rule_accepts_a_pair_whose_gain_is_undefined(score: float | None) -> None:
    """Whatever the rule says: here the surprisal fell."""
    pair = {"entropy": 2.0, "entropy_context": score, "entropy_control": 2.0}
    pair |= {"surprisal": 2.0, "surprisal_context": 1.0, "surprisal_control": 2.0}
    row = pl.DataFrame([pair], schema=dict.fromkeys(pair, pl.Float32)).with_columns(
        refusal=pl.lit(None, pl.String)
    )
    settings = VerificationSettings(rule="likelier")
    assert judge(row, settings)["accepted_by"].to_list() == [[]]
    assert judge(row, settings)["verdict"].to_list() == ["not_likelier"]
    sound = row.with_columns(entropy_context=pl.lit(3, pl.Float32))
    assert judge(sound, settings)["accepted_by"].to_list() == [["likelier"]]


SCORING = {"scoring.model", "scoring.bos", "scoring.separator", "scoring.dtype"}
SCORING |= {"scoring.max_forward_tokens"}
OWN = {"rule", "compared_rules", "controls", "screen", "max_contexts_per_root"}
OWN |= {"max_forward_tokens_per_root", "evidence"}
DRAWING = {"seed", "retrieval.leak_check", "retrieval.leak_ngram_words"}
DRAWING |= {"retrieval.max_containment"}
OF_KINDS = {"max_phrase_documents", "max_pair_documents", "excluded_anchors"}
OF_GENUINE = {"min_calibrated_gain", "min_surprisal_gain"} | OF_KINDS


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({}, OF_GENUINE),
        ({"compared_rules": ["calibrated"]}, {"epsilon", "require_surprisal_drop"} | OF_GENUINE),
        ({"rule": "plain", "compared_rules": ["plain"]}, {"epsilon"} | OF_KINDS),
        ({"rule": "likelier"}, OF_KINDS),
        ({"rule": "likelier", "evidence": False}, set()),
        ({"rule": "likelier", "compared_rules": ["plain"]}, {"epsilon"} | OF_KINDS),
    ],
)
def test_the_stage_is_determined_by_what_its_rules_read(
    values: dict[str, Any], read: set[str]
) -> None:
    settings = make_project({"verification": values}).dataset
    paths = STAGE.determined_by(settings)
    assert len(set(paths)) == len(paths)
    assert set(paths) == SCORING | DRAWING | {f"verification.{name}" for name in OWN | read}


def test_without_controls_nothing_is_drawn() -> None:
    settings = make_project({"verification": {"rule": "plain", "controls": 0}}).dataset
    assert not DRAWING & set(STAGE.determined_by(settings))


def failed_checks(partition: Partition) -> set[str]:
    return {r.check.name for r in run_checks(STAGE, partition) if not r.passed}


@pytest.mark.parametrize("name", ["bfloat16", "fp8"])
def test_a_built_in_screen_is_the_scoring_model_in_its_arithmetic(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(screener, "load_screener", lambda *arguments: calls.append(arguments))
    model: Any = object()
    SCREENS[name](model, 64)
    assert calls == [(model, name, 64)]


def test_a_shard_is_verified_by_rule_and_screen_of_another_package(
    world: World, tmp_path: Path
) -> None:
    settings = with_verification(copy_of(world, tmp_path / "data"), rule="likelier", screen="exact")
    partition = Partition(settings, open_store(settings), world.shards[0])
    done = materialize(STAGE, partition)
    pairs = partition.store.read(VERIFIED_DEPENDENCIES, partition.shard, "pairs")
    scored = pairs.filter(pl.col("entropy_context").is_not_null(), pl.col("entropy") > 0)
    likelier = scored["surprisal_context"] < scored["surprisal_control"]
    assert 20 < likelier.sum() < len(scored)
    assert scored["accepted"].to_list() == likelier.to_list()
    assert set(scored.filter(~likelier)["verdict"]) == {"not_likelier"}
    summary = partition.store.summary(VERIFIED_DEPENDENCIES, partition.shard)
    assert set(summary.accepted_by) == set(summary.false_acceptance)
    assert set(summary.accepted_by) == {"plain", "genuine", "likelier"}
    assert summary.accepted_by["likelier"] == summary.accepted == likelier.sum()
    assert summary.screen is not None
    assert summary.screen["contexts"] == summary.contexts_scored
    assert done.metadata["verdicts"] == summary.verdicts
    assert failed_checks(partition) == set()


@pytest.mark.parametrize(
    "change",
    [
        pl.lit(["x"]).alias("accepted_by"),
        pl.lit(["likelier", "likelier"]).alias("accepted_by"),
        pl.lit([], pl.List(pl.String)).alias("accepted_by"),
        (~pl.col("accepted")).alias("accepted"),
        pl.lit("accepted").alias("verdict"),
        (pl.col("gain") + 1e-6).alias("gain"),
        (pl.col("calibrated_gain") - 1e-6).alias("calibrated_gain"),
    ],
)
def test_the_check_finds_a_verdict_of_another_package_that_contradicts_itself(
    world: World, change: pl.Expr
) -> None:
    shard = world.shards[0]
    settings = with_verification(world.settings, rule="likelier")
    refusal = pl.when(pl.col("entropy_context").is_null()).then("verdict")
    stored = world.store.read(VERIFIED_DEPENDENCIES, shard, "pairs")
    pairs = judge(stored.with_columns(refusal=refusal), settings.verification)
    assert STAGE.check_folder is not None
    sql = (STAGE.check_folder / "verdicts_recomputed.sql").read_text()
    values = STAGE.check_parameters(Partition(settings, world.store, shard))
    used = {name: value for name, value in values.items() if f"${name}" in sql}
    for frame, is_sound in ((pairs, True), (pairs.with_columns(change), False)):
        with duck.connect(world.store, {"pairs": frame}, only=sql) as session:
            assert (session.sql(sql, params=used).fetchall() == []) is is_sound

"""The approximate screen: what it may change, what it must not, and what it measures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy import screener as screeners
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, load_scoring_model
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets.stages.verification.screen import Margin, doubtful, fit_margin
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.entropy import tiny
from entropylong_assets_tests.stages.verification.one_shard import verify, with_verification

CALIBRATED = VerificationSettings(rule="calibrated")
PLAIN = VerificationSettings(rule="plain")


def pairs_with(gain: Sequence[float], over: Sequence[float]) -> pl.DataFrame:
    """Pairs with this gain under either rule.

    over: surprisal given the context above the lower of its references (nats); below 0 the true
    token became likelier.
    """
    return pl.DataFrame(
        {"gain": gain, "calibrated_gain": gain, "surprisal_context": over},
        schema_overrides=dict.fromkeys(("gain", "calibrated_gain"), pl.Float64),
    ).with_columns(
        pl.col("surprisal_context").cast(pl.Float32) + 5,
        entropy=pl.lit(1, pl.Float32),
        entropy_context=(1 - pl.col("gain")).cast(pl.Float32),
        entropy_control=pl.lit(1, pl.Float32),
        surprisal=pl.lit(5, pl.Float32),
        surprisal_control=pl.lit(6, pl.Float32),
    )


@pytest.mark.parametrize(
    ("gain", "over", "calibrated", "plain"),
    [
        (0.45, -3.0, True, True),  # within the margin, and likelier
        (0.35, -3.0, True, True),
        (0.51, -3.0, False, False),  # clearly accepted
        (0.29, -3.0, False, False),  # clearly too small
        (0.45, 3.0, False, True),  # near, but clearly not likelier: no verdict can change
        (0.90, 0.4, True, False),  # a clear gain, but the surprisal is in doubt
        (0.90, -0.4, True, False),
        (0.10, 0.4, False, False),  # the surprisal is in doubt, but the gain decides
        (float("nan"), -3.0, False, False),
    ],
)
def test_doubtful_pairs_are_those_whose_verdict_could_change(
    gain: float, over: float, calibrated: bool, plain: bool
) -> None:
    pair, margin = pairs_with([gain], [over]), Margin(0.1, 0.5)
    assert doubtful(pair, margin, CALIBRATED).tolist() == [calibrated]
    assert doubtful(pair, margin, PLAIN).tolist() == [plain]


@pytest.mark.parametrize("rule", ["plain", "calibrated"])
@pytest.mark.parametrize("require_surprisal_drop", [True, False])
def test_doubt_follows_from_the_distances_to_the_limits(
    rule: str, require_surprisal_drop: bool
) -> None:
    """For the built-in rules there is a formula, derived by hand."""
    settings = VerificationSettings(rule=rule, require_surprisal_drop=require_surprisal_drop)
    draw = np.random.default_rng(1)
    gain, over = draw.normal(0.4, 0.3, 5000), draw.normal(0, 1, 5000)
    margin = Margin(0.1, 0.5)
    above = gain - settings.epsilon
    expected = np.abs(above) <= margin.gain
    if rule == "calibrated" and require_surprisal_drop:
        expected &= over < margin.surprisal
        expected |= (above > 0) & (np.abs(over) <= margin.surprisal)
    assert 200 < expected.sum() < 4800
    pairs = pairs_with(gain.tolist(), over.tolist())
    assert np.array_equal(doubtful(pairs, margin, settings), expected)


@pytest.mark.parametrize("settings", [CALIBRATED, PLAIN])
def test_the_margin_covers_the_observed_errors(settings: VerificationSettings) -> None:
    draw = np.random.default_rng(0)
    gain, over = draw.normal(0, 1, 4000), draw.normal(0, 1, 4000)
    exact = pairs_with(gain.tolist(), over.tolist())
    cheap = pairs_with((gain + draw.normal(0, 0.1, 4000)).tolist(), (over - 0.25).tolist())
    margin = fit_margin(cheap, exact, settings)
    # Of a normal error 99.5% lie within 2.807 σ.
    assert margin.gain == pytest.approx(0.2807, rel=0.1)
    assert margin.surprisal == pytest.approx(0.25, abs=1e-6)  # float32
    nothing = pairs_with([], [])
    assert fit_margin(nothing, nothing, settings) == (0.0, 0.0)


class Noisy:
    """A scorer whose entropies are off by a known amount, different for each sequence."""

    def __init__(self, exact: PackedScorer, scale: float) -> None:
        self.exact, self.scale, self.requests = exact, scale, 0

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        self.requests += len(requests)
        scores = []
        for request, exact in zip(requests, self.exact.score(requests, on_progress), strict=True):
            draw = np.random.default_rng(int(request.token_ids_T.sum()))
            noise = draw.uniform(-1, 1, len(exact.entropy_N)).astype(np.float32)
            scores.append(PositionScores(exact.entropy_N + self.scale * noise, exact.surprisal_N))
        return scores


@pytest.fixture(scope="module")
def settings(world: World) -> Settings:
    """The published rule: of a random model's pairs the calibrated one accepts next to none."""
    return with_verification(world.settings, rule="plain")


@pytest.fixture(scope="module")
def exact(
    world: World, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> pl.DataFrame:
    into = TableStore(str(tmp_path_factory.mktemp("exact")))
    return verify(settings, world.shards[0], into).pairs


def test_noise_changes_few_verdicts_and_is_measured(
    world: World, settings: Settings, exact: pl.DataFrame, tmp_path: Path
) -> None:
    """Guards against doubtful pairs left as they are, and controls that the screen touches."""
    cheap = Noisy(PackedScorer(load_scoring_model(settings.scoring)), 0.1)
    done = verify(settings, world.shards[0], TableStore(str(tmp_path)), screener=cheap)
    pairs, figures = done.pairs, done.verified.screen
    assert figures is not None
    assert pairs["entropy_control"].equals(exact["entropy_control"])
    off = (pairs["entropy_context"] - exact["entropy_context"]).abs()
    assert off.max() > 0.05, "cheap scores are kept if they can't change a verdict"  # type: ignore[operator]
    near = (exact["gain"] - settings.verification.epsilon).abs() < 0.01
    assert near.sum() > 0
    again = off < 1e-5
    # A small sample's margin does not cover every error, and need not.
    assert again.filter(near).mean() > 0.7, "exact if the verdict could change"  # type: ignore[operator]
    assert again.drop_nulls().mean() < 0.7, "and only then"  # type: ignore[operator]
    accepted = exact["accepted"]
    assert accepted.sum() > 20
    kept = (pairs["accepted"] & accepted).sum() / accepted.sum()
    assert kept > 0.97
    assert (
        cheap.requests
        == figures["contexts"]
        == exact.filter(pl.col("entropy_context").is_not_null())
        .select("root_id", "chunk_id")
        .n_unique()
    )
    assert 0 < figures["contexts_rechecked"] < figures["contexts"]
    assert figures["sample_accepted"] > 0
    assert figures["recall"] == figures["sample_kept"] / figures["sample_accepted"]
    assert 0 < figures["margin_gain"] < 0.2


def test_an_exact_screen_changes_nothing_and_rescores_nothing(
    world: World, settings: Settings, exact: pl.DataFrame, tmp_path: Path
) -> None:
    cheap = Noisy(PackedScorer(load_scoring_model(settings.scoring)), 0.0)
    done = verify(settings, world.shards[0], TableStore(str(tmp_path)), screener=cheap)
    assert done.pairs["verdict"].to_list() == exact["verdict"].to_list()
    measured = done.verified.screen
    assert measured is not None
    assert measured["recall"] == measured["precision"] == 1
    assert measured["contexts_rechecked"] <= 2  # where rounding alone is the margin


def test_bfloat16_as_a_screen_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screeners, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr("entropylong_assets.stages.entropy.engine.cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr("entropylong_assets.stages.entropy.engine.compiling_pays", lambda _: False)
    model = tiny.llama()
    cheap = screeners.make_screener(model, "bfloat16")
    assert cheap.hf_model.dtype == torch.bfloat16
    assert model.hf_model.dtype == torch.float32, "the exact pass keeps its weights"
    requests = tiny.requests(10, seed=1)
    both = zip(cheap.score(requests), PackedScorer(model).score(requests), strict=True)
    off = np.concatenate([np.abs(a.entropy_N - b.entropy_N) for a, b in both])
    assert 1e-4 < off.mean() < 0.1


def test_a_screen_without_a_benefit_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.llama()
    monkeypatch.setattr(screeners, "cpu_has_bfloat16", lambda: False)
    half = ScoringModel(copy.deepcopy(model.hf_model).bfloat16(), model.tokenizer, "h", 512)
    for loaded, kind, reason in (
        (model, "bfloat16", "this CPU only emulates it"),
        (half, "bfloat16", "so is the exact pass"),
        (model, "fp8", "does not multiply 8-bit floats"),
    ):
        with pytest.raises(ModelError, match=reason) as caught:
            screeners.make_screener(loaded, kind)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert "set verification.screen to 'none'" in str(caught.value)

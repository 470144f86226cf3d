"""The screen `splice` on a shard: what it may leave out, and what it must never change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.entropy.scoring import PositionScores
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets.stages.verification import screens
from entropylong_assets.stages.verification.calibrated_screen import _occurs
from entropylong_assets.stages.verification.registry import Key
from entropylong_assets.stages.verification.requests import ContextRequest, context_request
from entropylong_assets.stages.verification.screening import CalibratedScreening, make_screening
from entropylong_assets.stages.verification.spliced import SplicedEstimator
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.versioning import determining_settings
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.entropy import tiny
from entropylong_assets_tests.stages.verification.one_shard import verify, with_verification


@pytest.fixture(scope="module")
def settings(world: World) -> Settings:
    """The published rule, and a recall that the few contexts of a shard suffice for."""
    return with_verification(
        world.settings, rule="plain", epsilon=0.4, screen="splice", screen_recall=0.5
    )


@pytest.fixture(scope="module")
def exact(
    world: World, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> pl.DataFrame:
    into = TableStore(str(tmp_path_factory.mktemp("exact")))
    return verify(with_verification(settings, screen="none"), world.shards[0], into).pairs


def test_nothing_is_accepted_without_exact_scores(
    world: World, settings: Settings, exact: pl.DataFrame, tmp_path: Path
) -> None:
    done = verify(settings, world.shards[0], TableStore(str(tmp_path)))
    pairs, figures = done.pairs, done.verified.screen
    assert figures is not None
    out = pairs["verdict"] == "screened_out"
    assert 0 < out.sum() < len(pairs)
    unscored = pairs.filter(out)
    for column in ("entropy_context", "surprisal_context", "gain", "calibrated_gain"):
        assert unscored[column].is_null().all()
    assert not unscored["accepted"].any()
    assert unscored["accepted_by"].list.len().sum() == 0
    # All others are those of the exact run, from keys that were kept.
    rest, same = pairs.filter(~out), exact.filter(~out)
    for column in ("entropy_context", "surprisal_context"):
        assert np.allclose(
            rest[column].to_numpy(), same[column].to_numpy(), atol=1e-4, rtol=0, equal_nan=True
        )
    assert rest["verdict"].equals(same["verdict"])
    contexts = pairs.filter(pl.col("entropy_context").is_not_null()).select("root_id", "chunk_id")
    counted = {name: figures[f"contexts_{name}"] for name in ("scored_both_ways", "rescored")}
    assert sum(counted.values()) == contexts.n_unique()
    assert figures["contexts_screened_out"] == unscored.select("root_id", "chunk_id").n_unique()
    assert figures["contexts"] == sum(counted.values()) + figures["contexts_screened_out"]
    assert {"weight_splice_gain", "weight_bare_drop", "weight_bigram_in_context"} <= figures.keys()


def test_the_wished_recall_of_few_pairs_needs_all_exact_scores(
    world: World, settings: Settings, exact: pl.DataFrame, tmp_path: Path
) -> None:
    careful = with_verification(settings, screen_recall=0.995)
    done = verify(careful, world.shards[0], TableStore(str(tmp_path)))
    assert done.pairs["verdict"].equals(exact["verdict"])
    assert done.verified.screen is not None
    assert done.verified.screen["contexts_screened_out"] == 0
    assert done.verified.screen["is_off"] == 1


def test_waves_go_on_after_contexts_that_are_screened_out(
    world: World, settings: Settings, tmp_path: Path
) -> None:
    """Guards against a wave that is tried again and again because it has no scores."""
    limited = with_verification(settings, max_contexts_per_root=2)
    pairs = verify(limited, world.shards[0], TableStore(str(tmp_path))).pairs
    verdicts = set(pairs["verdict"])
    assert {"screened_out", "not_tried", "accepted"} <= verdicts


class Whole:
    """The exact scorer, which notes what it is asked for."""

    def __init__(self, model: ScoringModel) -> None:
        self.scorer, self.asked = PackedScorer(model), 0

    def score(
        self,
        requests: Sequence[ContextRequest],  # type: ignore[override]
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        self.asked += len(requests)
        return self.scorer.score(requests, on_progress)


def requests_of(model: ScoringModel) -> dict[Key, ContextRequest]:
    """Four roots that share some of six contexts."""
    draw = np.random.default_rng(2)
    contexts = [draw.integers(3, tiny.VOCAB, int(n)) for n in draw.integers(5, 40, 6)]
    requests = {}
    for r in range(4):
        root = draw.integers(3, tiny.VOCAB, 60 + 70 * r)
        for c in sorted(draw.choice(6, 4, replace=False)):
            anchors = draw.choice(np.arange(1, len(root)), 3, replace=False).tolist()
            bos = model.tokenizer.bos_ids
            requests[f"r{r}", f"c{c}"] = context_request(bos, contexts[c], root, anchors, 512)
    return requests


@pytest.mark.parametrize("is_exact", [True, False])
def test_memory_of_kept_keys_is_bounded_and_changes_no_score(is_exact: bool) -> None:
    """Guards against contexts that are forgotten or computed for the wrong root in small groups."""
    model = tiny.llama()
    requests, whole = requests_of(model), Whole(model)
    expected = dict(zip(requests, whole.scorer.score(list(requests.values())), strict=True))
    found, groups = [], []
    for kept_tokens in (100_000, 500):
        scores: dict[str, dict[Key, PositionScores]] = {"splice": {}, "bare": {}, "exact": {}}
        estimator = SplicedEstimator(
            PackedScorer(model), is_exact=is_exact, kept_tokens=kept_tokens
        )
        number = 0
        for group in estimator.estimate(requests, whole, lambda _: None):
            number += 1
            for name, estimates in group.estimates.items():
                assert not scores[name].keys() & estimates.keys()
                scores[name] |= estimates
            scores["exact"] |= group.score_exactly(list(group.estimates["splice"]))
            kept = group.kept.tokens + group.kept_roots.tokens  # type: ignore[attr-defined]
            assert kept <= kept_tokens
        groups.append(number)
        found.append(scores)
    assert groups[0] == 1
    assert groups[1] > 2
    assert (whole.asked > 0) == (not is_exact)
    for key, request in requests.items():
        for name in ("splice", "bare", "exact"):
            a, b = (scores[name][key] for scores in found)
            assert len(a.entropy_N) == len(request.anchors)
            assert np.allclose(a.entropy_N, b.entropy_N, atol=1e-5, rtol=0)
        assert np.allclose(found[0]["exact"][key].entropy_N, expected[key].entropy_N, atol=1e-5)


def test_chunks_that_several_roots_nominate_are_computed_once() -> None:
    model = tiny.llama()
    requests, seen = requests_of(model), []
    estimator = SplicedEstimator(PackedScorer(model), is_exact=True, kept_tokens=100_000)
    for _ in estimator.estimate(requests, Whole(model), seen.append):
        pass
    distinct = {r.context_ids.tobytes(): r.context_tokens for r in requests.values()}
    roots = {key[0]: len(r.root_ids) + 1 for key, r in requests.items()}
    assert len(distinct) < len(requests)
    before_windows = sum(distinct.values()) + sum(roots.values())
    windows = sum(
        len({u for t in r.anchors for u in range(max(t - w, -1 if t <= w else 0), t)})
        for r in requests.values()
        for w in (64, 128)
    )
    assert sum(seen) == before_windows + windows


def test_a_model_without_rotary_positions_is_refused_in_one_line() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    special = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4, **special)
    model = tiny._model(GPT2LMHeadModel, config)
    with pytest.raises(ModelError, match="its positions are not rotary embeddings") as caught:
        screens._spliced("splice", PackedScorer(model), is_exact=True)
    assert "\n" not in str(caught.value)
    assert "set verification.screen to 'none'" in str(caught.value)


def test_tokens_and_bigrams_of_a_context_are_found() -> None:
    context, root = [7, 8, 9, 5], [8, 9, 4, 5, 8]
    request = context_request([1], context, root, [0, 1, 2, 3, 4], 512)
    assert [_occurs(request, anchor) for anchor in range(5)] == [
        (1.0, 0.0),  # 8, after the context's own last token 5
        (1.0, 1.0),  # 8 9
        (0.0, 0.0),
        (1.0, 0.0),  # 5 after 4
        (1.0, 0.0),  # 8 after 5: in the context, 5 is the last
    ]


def test_the_wished_recall_determines_a_shard_with_a_screen_only(settings: Settings) -> None:
    for screen, determines in (("none", False), ("splice", True), ("bfloat16", True)):
        changed = with_verification(settings, screen=screen)
        found = determining_settings(VERIFIED_DEPENDENCIES_STAGE, changed)
        assert ("verification.screen_recall" in found) == determines


def test_the_kind_of_screening_follows_from_the_screen(settings: Settings) -> None:
    verification = settings.verification
    assert make_screening(None, verification, 9) is None
    estimator = SplicedEstimator(PackedScorer(tiny.llama()), is_exact=True, kept_tokens=9)
    made = make_screening(estimator, verification, 9)
    assert isinstance(made, CalibratedScreening)
    assert made.calibration.recall == verification.screen_recall

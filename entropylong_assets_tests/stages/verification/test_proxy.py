"""Estimates by another model of the same tokenizer, and what is compared with what."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import Tokenizer, score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets.stages.verification import proxy
from entropylong_assets.stages.verification.calibrated_screen import features
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.proxy import ProxyEstimator, load_proxy
from entropylong_assets.stages.verification.registry import Key
from entropylong_assets.stages.verification.requests import ContextRequest, context_request
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets_tests.stages.entropy import tiny

SETTINGS = VerificationSettings(rule="plain", controls=0)


def requests_of(bos: tuple[int, ...]) -> dict[Key, ContextRequest]:
    draw = np.random.default_rng(5)
    roots = [draw.integers(3, tiny.VOCAB, n) for n in (50, 80)]
    contexts = [draw.integers(3, tiny.VOCAB, n) for n in (9, 30, 14)]
    return {
        (f"r{r}", f"c{c}"): context_request(bos, context, root, [0, 20 + c, 45], 512)
        for r, root in enumerate(roots)
        for c, context in enumerate(contexts)
    }


def judged(requests: dict[Key, ContextRequest], scores: dict[Key, PositionScores]) -> pl.DataFrame:
    """Pairs whose root alone has an entropy and a surprisal of 4 nats in the scoring model."""
    rows = [
        (*key, int(anchor), 0.5, 4.0, 4.0, float(entropy), float(surprisal))
        for key, score in scores.items()
        for anchor, entropy, surprisal in zip(
            requests[key].anchors, score.entropy_N, score.surprisal_N, strict=True
        )
    ]
    names = ["root_id", "chunk_id", "anchor", "similarity", "entropy", "surprisal"]
    names += ["entropy_context", "surprisal_context"]
    pairs = pl.DataFrame(rows, schema=names, orient="row")
    unknown = {n: pl.lit(None, pl.Float32) for n in ("entropy_control", "surprisal_control")}
    return judge(pairs.with_columns(**unknown, refusal=pl.lit(None, pl.String)), SETTINGS)


@pytest.mark.parametrize("bos", [(1,), ()])
def test_features_are_changes_between_the_proxys_own_scores(bos: tuple[int, ...]) -> None:
    """The failure: a gain between the proxy's entropy and that of the scoring model, which says
    more about the two models than about the context."""
    model = tiny.llama()
    scorer, requests = PackedScorer(model), requests_of(bos)
    (group,) = ProxyEstimator(scorer, bos, "small").estimate(requests, scorer, lambda _: None)
    rows = features(group, requests, lambda scores: judged(requests, scores), SETTINGS)
    compared = 0
    for root_id, chunk_id, anchor, gain, drop in rows.select(
        "root_id", "chunk_id", "anchor", "small_gain", "small_drop"
    ).iter_rows():
        request = requests[root_id, chunk_id]
        at = len(bos) + anchor
        if not at:
            assert (gain, drop) == (0, 0)  # nothing predicts the first token
            continue
        tokens_T = np.concatenate([np.array(bos, np.int64), request.root_ids])
        alone = score_plainly(model, ScoringRequest(tokens_T, np.array([at])))
        given = score_plainly(
            model, ScoringRequest(request.token_ids_T, np.array([request.context_tokens + anchor]))
        )
        entropies = float(alone.entropy_N[0]), float(given.entropy_N[0])
        expected = np.clip((entropies[0] - entropies[1]) / entropies[0], -2, 2)
        assert gain == pytest.approx(expected, abs=1e-4)
        expected = np.clip(float(alone.surprisal_N[0] - given.surprisal_N[0]), -10, 10)
        assert drop == pytest.approx(expected, abs=1e-3)
        compared += 1
    assert compared >= 12


def with_vocabulary(vocabulary: dict[str, int], **changed: Any) -> Any:
    hf_tokenizer: Any = SimpleNamespace(get_vocab=lambda: vocabulary)
    return replace(tiny.llama(), tokenizer=Tokenizer(hf_tokenizer, (1,), ()), **changed)


def test_a_proxy_that_reads_other_tokens_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_vocabulary({"a": 0, "b": 1, "c": 2})
    others = {
        "two-same": with_vocabulary({"a": 0, "b": 1, "d": 2}),
        "short": with_vocabulary({"a": 0, "b": 1, "c": 2}, max_forward_tokens=128),
        "fits": with_vocabulary({"a": 0, "b": 1, "c": 2}),
    }
    monkeypatch.setattr(proxy, "load_scoring_model", lambda settings: others[settings.model])
    reasons = {"two-same": "2 of 3 tokens have the same id", "short": "it reads 128 tokens at most"}
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=reason) as caught:
            load_proxy(model, name)
        assert "\n" not in str(caught.value)
    assert isinstance(load_proxy(model, "fits"), ProxyEstimator)

"""Scores in chunks with kept keys against one plain pass.

The failures guarded against: a chunk that does not see the text before it, positions that start
again in each chunk, a sliding window that ends at a chunk, and a wrong score at a chunk's edge.
"""

from __future__ import annotations

import numpy as np
import pytest

from entropylong_assets.stages.entropy.chunked import ChunkedScorer
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets_tests.stages.entropy import tiny


@pytest.fixture(scope="module", params=[tiny.llama, tiny.gemma3])
def model(request: pytest.FixtureRequest) -> ScoringModel:
    result: ScoringModel = request.param()
    return result


@pytest.mark.parametrize("chunk", [7, 16, 64, 150])
def test_sums_equal_one_plain_pass(model: ScoringModel, chunk: int) -> None:
    draw = np.random.default_rng(1)
    tokens = np.concatenate([[1], draw.integers(3, tiny.VOCAB, 200)])
    every = ScoringRequest(tokens, np.arange(1, len(tokens)))
    some = ScoringRequest(tokens, np.array([1, 16, 17, 64, 65, 140, 199]))
    scorer = ChunkedScorer(PackedScorer(model), chunk_tokens=chunk)
    for request in (every, some):
        plain, chunked = score_plainly(model, request), scorer.score_in_chunks(request)
        for a, b in (
            (plain.surprisal_N, chunked.surprisal_N),
            (plain.entropy_N, chunked.entropy_N),
        ):
            assert np.abs(a - b).max() < 1e-4
            assert abs(float(a.sum(dtype=np.float64) - b.sum(dtype=np.float64))) < 1e-4
    bare = score_plainly(model, ScoringRequest(tokens[100:], np.array([60])))
    alone = score_plainly(model, ScoringRequest(tokens, np.array([160])))
    if model.hf_model.config.model_type == "llama":
        assert abs(float(bare.surprisal_N[0] - alone.surprisal_N[0])) > 1e-3, "far tokens matter"


def test_short_and_long_requests_keep_their_order(model: ScoringModel) -> None:
    requests = tiny.requests(9, seed=4)
    scorer = ChunkedScorer(PackedScorer(model), chunk_tokens=32)
    lengths: list[int] = []
    scores = scorer.score(requests, lengths.append)
    assert {len(r.token_ids_T) > 33 for r in requests} == {True, False}
    for request, score in zip(requests, scores, strict=True):
        plain = score_plainly(model, request)
        assert np.allclose(score.surprisal_N, plain.surprisal_N, atol=1e-4)
        assert np.allclose(score.entropy_N, plain.entropy_N, atol=1e-4)
    assert sum(lengths) == sum(int(r.positions_N[-1]) for r in requests)


def test_model_whose_chunks_differ_is_scored_in_one_pass(
    model: ScoringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that ignores the kept keys, like models that mix tokens outside attention."""
    decoder = model.hf_model.get_decoder()
    own = decoder.forward

    def forgetful(*args: object, **options: object) -> object:
        return own(*args, **{**options, "past_key_values": None})

    request = tiny.requests(1, seed=2, longest=90)[0]
    while len(request.token_ids_T) < 70:
        tokens = np.concatenate([request.token_ids_T, request.token_ids_T])
        request = ScoringRequest(tokens, np.arange(1, len(tokens)))
    monkeypatch.setattr(decoder, "forward", forgetful)
    scorer = ChunkedScorer(PackedScorer(model), chunk_tokens=16)
    plain = score_plainly(model, request).surprisal_N
    assert np.abs(scorer.score_in_chunks(request).surprisal_N - plain).max() > 1e-2
    assert np.allclose(scorer.score([request])[0].surprisal_N, plain, atol=1e-4)

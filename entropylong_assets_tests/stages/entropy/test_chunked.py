"""Scores in chunks with kept keys against one plain pass.

The failures guarded against: a chunk that does not see the text before it, positions that start
again in each chunk, a sliding window that ends at a chunk, a wrong score at a chunk's edge, and a
kernel that fails or differs on some device.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch

from entropylong_assets.stages.entropy import attention, chunk_attention
from entropylong_assets.stages.entropy.chunk_attention import ChunkAttention
from entropylong_assets.stages.entropy.chunked import ChunkedScorer, Way, possible_ways
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets_tests.architectures.definition import (
    defined_scores,
    largest_difference,
    requests_of_lengths,
)
from entropylong_assets_tests.architectures.outcome import config_of
from entropylong_assets_tests.architectures.tiny_models import tiny_config, tiny_model
from entropylong_assets_tests.stages.entropy import tiny


@pytest.fixture(scope="module", params=[tiny.llama, tiny.gemma3])
def model(request: pytest.FixtureRequest) -> ScoringModel:
    result: ScoringModel = request.param()
    return result


def long_request(tokens: int, seed: int = 1) -> ScoringRequest:
    draw = np.random.default_rng(seed)
    ids = np.concatenate([[1], draw.integers(3, tiny.VOCAB, tokens - 1)])
    return ScoringRequest(ids, np.arange(1, len(ids)))


@pytest.mark.parametrize("way", ["packed", "cache"])
@pytest.mark.parametrize("chunk", [7, 16, 64, 150])
def test_sums_equal_one_plain_pass(model: ScoringModel, chunk: int, way: Way) -> None:
    every = long_request(201)
    tokens = every.token_ids_T
    some = ScoringRequest(tokens, np.array([1, 16, 17, 64, 65, 140, 199]))
    last = ScoringRequest(tokens, np.array([200]))
    scorer = ChunkedScorer(PackedScorer(model), chunk_tokens=chunk)
    for request in (every, some, last):
        plain, parts = score_plainly(model, request), scorer.score_in_chunks(request, way)
        for a, b in (
            (plain.surprisal_N, parts.surprisal_N),
            (plain.entropy_N, parts.entropy_N),
        ):
            assert np.abs(a - b).max() < 1e-4
            assert abs(float(a.sum(dtype=np.float64) - b.sum(dtype=np.float64))) < 1e-4
    bare = score_plainly(model, ScoringRequest(tokens[100:], np.array([60])))
    alone = score_plainly(model, ScoringRequest(tokens, np.array([160])))
    if model.hf_model.config.model_type == "llama":
        assert abs(float(bare.surprisal_N[0] - alone.surprisal_N[0])) > 1e-3, "far tokens matter"


ROTARY_BY_LENGTH = ["phi3: longrope", "llama: dynamic", "gemma3_text: dynamic"]
OF_ARCHITECTURES: dict[str, Way] = {
    **dict.fromkeys(ROTARY_BY_LENGTH, "packed"),
    **dict.fromkeys(["mistral", "qwen2: sliding window", "deepseek_v3"], "packed"),
    "gemma2": "cache",  # it caps the weights of its attention
}


@pytest.mark.parametrize("name", OF_ARCHITECTURES)
def test_architectures_are_scored_in_chunks(name: str) -> None:
    """Guards against windows, values of other sizes, and rotary factors of a chunk's length."""
    model_type, over = config_of(name)
    model = tiny_model(tiny_config(model_type, **over))
    fresh = copy.deepcopy(model.hf_model)
    requests = requests_of_lengths([240, 30, 200, 100])
    scorer = PackedScorer(model, pack_tokens=300)
    ways = possible_ways(scorer)
    assert ("cache" in ways) == (name not in ROTARY_BY_LENGTH)
    chunked, lengths = ChunkedScorer(scorer, chunk_tokens=32), []
    scores = chunked.score(requests, lengths.append)
    assert largest_difference(scores, [defined_scores(fresh, r) for r in requests]) < 1e-4
    assert max(lengths) == 32
    assert chunked.way_for(requests[0]) == OF_ARCHITECTURES[name]


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

    request = long_request(80, seed=2)
    monkeypatch.setattr(decoder, "forward", forgetful)
    scorer = ChunkedScorer(PackedScorer(model, mode="single"), chunk_tokens=16)
    plain = score_plainly(model, request).surprisal_N
    assert np.abs(scorer.score_in_chunks(request, "cache").surprisal_N - plain).max() > 1e-2
    lengths: list[int] = []
    assert np.allclose(scorer.score([request], lengths.append)[0].surprisal_N, plain, atol=1e-4)
    assert lengths == [79], "one pass"


def without_kept_keys(attend: Any, inputs: Any) -> Any:
    return attention.attend_packed(inputs)


def broken(*_: Any) -> Any:
    raise RuntimeError("No valid execution plans built.")


@pytest.mark.parametrize(
    ("fails", "reason"),
    [(without_kept_keys, "differ from the plain definition"), (broken, "No valid execution plans")],
)
def test_way_that_differs_or_fails_is_replaced_with_its_reason(
    model: ScoringModel,
    fails: Any,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = long_request(80)
    scorer = ChunkedScorer(PackedScorer(model), chunk_tokens=16)
    monkeypatch.setattr(
        ChunkAttention, "of_next_chunk", lambda self: lambda inputs: fails(self, inputs)
    )
    lengths: list[int] = []
    with caplog.at_level(logging.WARNING):
        scores = scorer.score([request, request], lengths.append)
    for each in scores:
        plain = score_plainly(model, request)
        assert np.allclose(each.surprisal_N, plain.surprisal_N, atol=1e-4)
    assert max(lengths) == 16, "transformers' cache is used, in chunks"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "'packed'" in message
    assert reason in message


@pytest.mark.parametrize("forgets", [False, True])
def test_models_in_bfloat16_are_scored_in_chunks_although_rounding_differs(
    model: ScoringModel, forgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit of float32, or a fixed one, a right way would be taken for a wrong one: on a
    GPU it differed by 0.065 nats with 8 billion random weights."""
    rounded = copy.deepcopy(model)
    rounded.hf_model.to(torch.bfloat16)
    if forgets:
        monkeypatch.setattr(
            ChunkAttention, "of_next_chunk", lambda self: lambda i: without_kept_keys(self, i)
        )
    scorer = ChunkedScorer(PackedScorer(rounded), chunk_tokens=16)
    assert scorer.way_for(long_request(80)) == ("cache" if forgets else "packed")


def lower_right(query: Any, key: Any, value: Any, scale: float, window: int = 0) -> Any:
    """Attention of the last tokens to all of them, written out in float64."""
    groups, first = query.shape[1] // key.shape[1], len(key) - len(query)
    result = torch.zeros(query.shape, dtype=torch.float64)
    for row in range(len(query)):
        for head in range(query.shape[1]):
            begin = max(0, first + row + 1 - window) if window else 0
            seen = slice(begin, first + row + 1)
            keys, values = key[seen, head // groups], value[seen, head // groups]
            weights = (keys.double() @ query[row, head].double() * scale).softmax(0)
            result[row, head] = weights @ values.double()
    return result


@pytest.mark.parametrize("window", [0, 1, 5, 700])
@pytest.mark.parametrize("block", [4, 512])
def test_queries_are_the_last_tokens_of_their_keys(
    window: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against masks aligned to the upper left, and against keys of another sequence."""
    monkeypatch.setattr(attention, "QUERIES_PER_BLOCK", block)
    torch.manual_seed(0)
    queries, keys = [3, 1, 9, 14], [3, 8, 30, 14]
    query = torch.randn(sum(queries), 4, 8)
    key, value = torch.randn(2, sum(keys), 2, 8)
    borders, key_borders = (
        torch.tensor([0, *np.cumsum(x)], dtype=torch.int32) for x in (queries, keys)
    )
    got = attention.attend_packed(
        attention.AttentionInputs(
            query, key, value, borders, 16, 0.3, window, key_borders, longest_keys=30
        )
    )
    parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    oracle = torch.cat([lower_right(q, k, v, 0.3, window) for q, k, v in parts])
    assert (got - oracle).abs().max() < 1e-5


def upper_left_kernel(
    query: Any, key: Any, value: Any, bias: None, with_sums: bool, *, is_causal: bool, scale: float
) -> tuple[Any, Any]:
    """What cuDNN returns, in float64: causal attention aligned to the upper left, and log-sums."""
    assert bias is None
    assert with_sums
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.double().repeat_interleave(groups, 1) for x in (key, value))
    weights = query.double() @ keys.transpose(-1, -2) * scale
    if is_causal:
        weights += torch.full(weights.shape[-2:], -torch.inf).triu(1)
    result = (weights.softmax(-1) @ values).to(query.dtype)
    return result, weights.logsumexp(-1, keepdim=True).float()


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_parts_of_cudnn_are_joined_into_one_attention(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the joining of kept keys and the chunk itself, whose kernel needs a GPU."""
    monkeypatch.setattr(chunk_attention, "cudnn_kernel", lambda: upper_left_kernel)
    torch.manual_seed(0)
    query, (key, value) = torch.randn(9, 4, 8), torch.randn(2, 9 + kept, 2, 8)
    got = chunk_attention.attend_with_cudnn(query, key, value, 0.7)
    assert got.is_contiguous(), "what the compiled layer was promised"
    assert (got - lower_right(query, key, value, 0.7)).abs().max() < 1e-5


def test_way_of_cudnn_keeps_windows(model: ScoringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN knows no sliding window: layers with one must use another kernel."""
    calls: list[bool] = []

    def kernel(*arguments: Any, **options: Any) -> Any:
        calls.append(options["is_causal"])
        return upper_left_kernel(*arguments, **options)

    monkeypatch.setattr(chunk_attention, "cudnn_kernel", lambda: kernel)
    monkeypatch.setattr(chunk_attention, "CUDNN_ROWS", 4)
    request, scorer = long_request(84), PackedScorer(model)
    chunked = ChunkedScorer(scorer, chunk_tokens=16, ways=["cudnn"])
    plain = score_plainly(model, request).surprisal_N
    assert np.allclose(
        chunked.score_in_chunks(request, "cudnn").surprisal_N, plain, atol=1e-4, rtol=0
    )
    config = model.hf_model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    assert len(calls) == kinds.count("full_attention") * (5 + 4), "five of six chunks"


@pytest.mark.parametrize(("window", "kept"), [(0, 30), (1, 0), (4, 3)])
def test_kept_keys_are_bounded_by_the_window(window: int, kept: int) -> None:
    layer = chunk_attention._KeptLayer(30, window)
    tokens = torch.arange(30.0)[:, None, None]
    for start in range(0, 30, 10):
        new = tokens[start : start + 10]
        keys, values = layer.append(new, new + 100)
        first = max(0, start - window + 1) if window else 0
        assert keys.flatten().tolist() == list(range(first, start + 10))
        assert torch.equal(values, keys + 100)
    assert [len(x) for x in layer._kept] == [kept, kept]

"""The engine against the plain definition on tiny models of both kinds, in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from entropylong_assets.stages.entropy import attention, engine
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.trunk import OnRows
from entropylong_assets_tests.stages.entropy import tiny

KINDS = {"llama": tiny.llama, "gemma3": tiny.gemma3}


@pytest.fixture(scope="module", params=KINDS)
def model(request: Any) -> ScoringModel:
    return KINDS[request.param]()


def largest_difference(a: list[PositionScores], b: list[PositionScores]) -> float:
    assert len(a) == len(b) > 0
    both = [(x.entropy_N, y.entropy_N) for x, y in zip(a, b, strict=True)]
    both += [(x.surprisal_N, y.surprisal_N) for x, y in zip(a, b, strict=True)]
    assert all(len(x) == len(y) for x, y in both)
    return max(float(np.abs(x - y).max(initial=0)) for x, y in both)


@pytest.mark.parametrize("mode", ["packed", "single"])
@pytest.mark.parametrize("budget", [16, 128, 4096])
def test_score_equals_the_plain_definition_in_any_packing(
    model: ScoringModel, mode: Any, budget: int
) -> None:
    """Guards against a wrong border, position, window, cap or row anywhere in the fast path."""
    requests = tiny.requests(24, seed=budget)
    plain = [score_plainly(model, r) for r in requests]
    scorer = PackedScorer(model, pack_tokens=budget, mode=mode)
    assert largest_difference(scorer.score(requests), plain) < 1e-5
    spread = np.concatenate([p.entropy_N for p in plain]).std()
    assert spread > 0.1, "the models must tell positions apart for this to mean anything"
    assert max(len(r.token_ids_T) for r in requests) > 16, "longer than the window and a budget"


def test_score_does_not_depend_on_the_order_of_requests(model: ScoringModel) -> None:
    """Guards against scores returned for the wrong request."""
    requests = tiny.requests(17, seed=5)
    order = np.random.default_rng(0).permutation(len(requests))
    scorer = PackedScorer(model, pack_tokens=200)
    straight = scorer.score(requests)
    shuffled = scorer.score([requests[i] for i in order])
    assert largest_difference([straight[i] for i in order], shuffled) < 1e-5
    assert scorer.mode == "packed", "otherwise nothing shared a pass"


def test_score_keeps_concurrent_passes_apart(model: ScoringModel) -> None:
    """Guards against shared state of concurrent passes, and a thread count that stays changed."""
    requests = tiny.requests(40, seed=9)
    before = torch.get_num_threads()
    scorer = PackedScorer(model, pack_tokens=64, compile_layers=False)
    scorer.test_up_to(90)
    try:
        torch.set_num_threads(4)
        scores = scorer.score(requests)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert largest_difference(scores, [score_plainly(model, r) for r in requests]) < 1e-5
    assert scorer.usage.passes > 8


def test_score_leaves_the_model_unchanged(model: ScoringModel) -> None:
    """Guards against a replaced attention that stays after the engine's own passes."""
    probe = tiny.requests(1, seed=1)[0]
    before = score_plainly(model, probe)
    implementation = model.hf_model.config._attn_implementation
    PackedScorer(model, compile_layers=False).score(tiny.requests(3, seed=2))
    assert model.hf_model.config._attn_implementation == implementation != attention.PACKED
    assert largest_difference([before], [score_plainly(model, probe)]) == 0


def test_engine_does_not_pack_if_sequences_leak(
    model: ScoringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without borders the scores of neighbours change, and the engine does not pack."""
    original = attention.attend_one_by_one
    requests = tiny.requests(2, seed=3, longest=40)
    changed = [ScoringRequest(requests[0].token_ids_T[::-1].copy(), requests[0].positions_N)]

    def second(scorer: PackedScorer, first: ScoringRequest) -> list[PositionScores]:
        return [scorer.score([first, requests[1]])[1]]

    scorer = PackedScorer(model, mode="packed", pack_tokens=4096)
    assert largest_difference(second(scorer, requests[0]), second(scorer, changed[0])) < 1e-6

    def leaking(q: Any, k: Any, v: Any, borders: Any, *rest: Any) -> Any:
        return original(q, k, v, torch.tensor([0, int(borders[-1])]), *rest)

    monkeypatch.setattr(attention, "attend_one_by_one", leaking)
    assert largest_difference(second(scorer, requests[0]), second(scorer, changed[0])) > 1e-3
    assert PackedScorer(model).mode == "single"


def test_engine_scores_plainly_if_fast_modes_differ() -> None:
    """Guards against silently wrong scores of models that scale their logits after the head."""
    model = tiny.llama()
    original = model.hf_model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        result.logits = result.logits * 0.5
        return result

    model.hf_model.forward = scaled
    scorer = PackedScorer(model)
    requests = tiny.requests(3, seed=8)
    assert scorer.mode == "plain"
    assert (
        largest_difference(scorer.score(requests), [score_plainly(model, r) for r in requests]) == 0
    )


def test_compiled_layers_equal_the_plain_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against compiled layers that all use the first layer's weights or shapes."""
    model = tiny.llama(tie_word_embeddings=True)
    requests = tiny.requests(12, seed=11)
    plain = [score_plainly(model, r) for r in requests]
    # Without C++, which takes a minute to compile: faults would be in the captured graph.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    scorer = PackedScorer(model, compile_layers=True, mode="packed", pack_tokens=150)
    assert largest_difference(scorer.score(requests), plain) < 1e-5


def test_score_accepts_requests_without_positions(model: ScoringModel) -> None:
    scorer = PackedScorer(model, mode="packed")
    nothing = ScoringRequest(np.array([1, 5, 6]), np.zeros(0, np.int64))
    one = ScoringRequest(np.array([1, 5, 6]), np.array([1]))
    assert scorer.score([]) == []
    scores = scorer.score([nothing, one, nothing])
    assert [len(s.entropy_N) for s in scores] == [0, 1, 0]


def test_usage_counts_tokens_up_to_the_last_scored_position() -> None:
    """Guards against computing the end of a root after its last scored position."""
    scorer = PackedScorer(tiny.llama(), mode="packed", pack_tokens=64)
    requests = [ScoringRequest(np.arange(3, 53), np.array([4, 20])) for _ in range(5)]
    seen: list[int] = []
    before = scorer.usage.snapshot()
    scorer.score(requests, seen.append)
    spent = scorer.usage.since(before)
    assert seen == [60, 40]
    assert (spent["forward_passes"], spent["forward_tokens"], spent["scored_positions"]) == (
        2,
        100,
        10,
    )
    assert spent["tflop_per_second"] >= 0  # rounded: may be 0 on a busy machine


def test_bfloat16_is_computed_in_float32_on_a_cpu_without_bfloat16_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.llama()
    model.hf_model.to(torch.bfloat16)
    monkeypatch.setattr(engine, "cpu_has_bfloat16", lambda: False)
    scorer = PackedScorer(model)
    assert scorer.hf_model.dtype == torch.float32
    assert model.hf_model.dtype == torch.bfloat16, "others may use the model"
    assert scorer.mode == "packed"


def test_a_pass_with_one_scored_row_has_no_size_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure: the compiler makes a variant of the last layer for one row, and scoring waits
    for it in the middle of a run."""
    model, seen = tiny.llama(), []
    forward = OnRows.forward

    def note_rows(self: OnRows, states_1TD: torch.Tensor) -> torch.Tensor:
        assert self.rows is not None
        seen.append(len(self.rows))
        return forward(self, states_1TD)

    monkeypatch.setattr(OnRows, "forward", note_rows)
    scorer = PackedScorer(model, mode="packed")
    request = ScoringRequest(np.arange(3, 40), np.array([30]))
    (scores,), plain = scorer.score([request]), score_plainly(model, request)
    assert seen == [2]
    assert np.allclose(scores.entropy_N, plain.entropy_N, atol=1e-4)
    assert len(scores.entropy_N) == 1

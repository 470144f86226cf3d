"""Models whose scores depend on the length of the whole sequence, or on other passes.

Each is compared with a new copy of the model that computes only one sequence (`definition.py`).
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch

from entropylong_assets.stages.entropy import rotary
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets.stages.verification.requests import context_request
from entropylong_assets_tests.architectures.definition import (
    defined_scores,
    largest_difference,
    requests_of_lengths,
)
from entropylong_assets_tests.architectures.tiny_models import VARIANTS, tiny_config, tiny_model
from entropylong_assets_tests.stages.entropy import tiny

SWITCH = 64
"""Length beyond which these models compute otherwise (tokens)."""

LENGTHS = [200, 20, 64, 65, 200, 40, 90, 240, 10, 63, 128]

KINDS = ["phi3: longrope", "phimoe: longrope", "llama: dynamic", "gemma3_text: dynamic"]


@pytest.fixture(params=KINDS)
def model(request: Any) -> ScoringModel:
    model_type, over = VARIANTS[request.param]
    return tiny_model(tiny_config(model_type, **over))


@pytest.mark.parametrize("mode", ["packed", "single", "plain"])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_mode_scores_a_sequence_as_if_it_were_alone(
    model: ScoringModel, mode: Any, threads: int
) -> None:
    """Guards against rotary factors of the longest sequence of a pass, of a pass that ends early,
    of earlier passes, and of passes in other threads."""
    fresh = copy.deepcopy(model.hf_model)
    requests = requests_of_lengths(LENGTHS)
    crossing = [r for r in requests if int(r.positions_N[-1]) <= SWITCH < len(r.token_ids_T)]
    assert crossing, "some passes end before the switch, and their sequences after it"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        scorer = PackedScorer(model, mode=mode, pack_tokens=300)
        scores = scorer.score(requests)
    finally:
        torch.set_num_threads(before)
    defined = [defined_scores(fresh, r) for r in requests]
    assert largest_difference(scores, defined) < 2e-5


def test_the_switch_matters(model: ScoringModel) -> None:
    """Otherwise the test above would show nothing: the same tokens, one sequence cut."""
    (whole,) = requests_of_lengths([200])
    early = np.arange(1, 40)
    uncut, cut = (
        ScoringRequest(tokens, early) for tokens in (whole.token_ids_T, whole.token_ids_T[:40])
    )
    pair = [defined_scores(model.hf_model, r) for r in (uncut, cut)]
    assert largest_difference(pair[:1], pair[1:]) > 0.02


def test_the_self_test_keeps_the_packed_mode(model: ScoringModel) -> None:
    scorer = PackedScorer(model, pack_tokens=300)
    scorer.score(requests_of_lengths(LENGTHS))
    assert scorer.mode == "packed"


def test_the_self_test_finds_a_switch_that_no_module_is_known_for(
    model: ScoringModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only at lengths beyond the switch does anything differ, in packed and in single mode."""
    monkeypatch.setattr(rotary, "depends_on_length", lambda _: False)
    fresh = copy.deepcopy(model.hf_model)
    scorer = PackedScorer(model, pack_tokens=300)
    short = requests_of_lengths([30, 40, 50])
    scorer.score(short)
    assert scorer.mode == "packed", "all sequences are shorter than the switch"
    with caplog.at_level(logging.WARNING):
        requests = requests_of_lengths([200, 20, 30])
        scores = scorer.score(requests)
    assert scorer.mode == "plain"
    assert [m.split(" ")[2] for m in caplog.messages] == ["'packed'", "'single'"]
    assert not any("\n" in m for m in caplog.messages)
    if "longrope" in model.hf_model.config.to_json_string():  # dynamic depends on earlier passes
        defined = [defined_scores(fresh, r) for r in requests]
        assert largest_difference(scores, defined) < 2e-5


def test_plain_scores_do_not_depend_on_earlier_passes(model: ScoringModel) -> None:
    """Guards against `dynamic`, which keeps the base of the longest sequence so far."""
    long, medium, short = requests_of_lengths([240, 100, 20])
    fresh = copy.deepcopy(model.hf_model)
    for request in (long, medium, short, medium, long):
        pair = [score_plainly(model, request)], [defined_scores(fresh, request)]
        assert largest_difference(*pair) < 2e-5


def test_the_score_of_an_anchor_does_not_depend_on_the_other_anchors(model: ScoringModel) -> None:
    """Guards against scores that depend on which anchor is the last one scored."""
    draw = np.random.default_rng(1)
    root, context = (list(draw.integers(3, 290, n)) for n in (60, 30))
    scorer = PackedScorer(model, pack_tokens=300)
    one = context_request([1], context, root, [20], 256)
    two = context_request([1], context, root, [20, 55], 256)
    alone, both = scorer.score([one])[0], scorer.score([two])[0]
    assert len(one.token_ids_T) == 91 > SWITCH > one.positions_N[-1]
    assert abs(alone.entropy_N[0] - both.entropy_N[0]) < 2e-5


def test_other_users_of_the_model_see_it_unchanged(model: ScoringModel) -> None:
    modules = dict(model.hf_model.named_modules())
    scorer = PackedScorer(model, pack_tokens=300)
    scorer.score(requests_of_lengths([200, 20]))
    assert dict(model.hf_model.named_modules()) == modules
    with torch.no_grad():  # not in inference mode
        model.hf_model(input_ids=torch.arange(3, 203)[None], use_cache=False)


def test_context_request_keeps_within_the_model_s_positions() -> None:
    request = context_request([1], [7, 8], [10, 11, 12, 13, 14], [1, 2], 6)
    assert request.token_ids_T.tolist() == [1, 7, 8, 10, 11, 12]
    assert request.positions_N.tolist() == [4, 5]


def scaled_beyond(model: ScoringModel, limit: int) -> None:
    """Let the model scale its embeddings in passes of more tokens than the limit."""
    embeddings = model.hf_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, __, out: out * 3 if out.shape[1] > limit else out)


def test_the_self_test_finds_a_switch_of_the_whole_pass() -> None:
    """Guards against any other part of a model that depends on the length of its input."""
    model = tiny.llama()
    scaled_beyond(model, 100)
    scorer = PackedScorer(model, pack_tokens=4096)
    requests = requests_of_lengths([30, 150, 40], seed=3)
    requests = [ScoringRequest(r.token_ids_T % 200 + 3, r.positions_N) for r in requests]
    assert scorer.mode == "packed"
    scores = scorer.score(requests)
    assert scorer.mode == "plain"
    assert largest_difference(scores, [defined_scores(model.hf_model, r) for r in requests]) < 2e-5


def test_passes_run_one_by_one_if_a_module_keeps_state() -> None:
    """Guards against threads that read the state of another thread's pass."""
    model = tiny.llama()
    mlp = model.hf_model.model.layers[0].mlp
    original = mlp.forward

    def forgetful(states: torch.Tensor) -> torch.Tensor:
        mlp.kept = states * 1.5
        torch.nn.functional.silu(torch.randn(200, 200) @ torch.randn(200, 200))  # time passes
        return original(mlp.kept if mlp.kept.shape == states.shape else states)

    mlp.forward = forgetful
    threads = torch.get_num_threads()
    scorer = PackedScorer(model, pack_tokens=64, compile_layers=False)
    requests = tiny.requests(30, seed=4)
    try:
        torch.set_num_threads(4)
        scores = scorer.score(requests)
    finally:
        torch.set_num_threads(threads)
    plain = [score_plainly(model, r) for r in requests]
    assert largest_difference(scores, plain) < 2e-5
    assert scorer.mode == "packed"
    assert not scorer.is_concurrent
    assert PackedScorer(tiny.llama(), compile_layers=False).is_concurrent

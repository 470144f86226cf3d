"""Spliced scores against their dense definition: one sequence per window, its mask written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from entropylong_assets.stages.entropy import splice_attention
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kept_keys import Range
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest, join_scores
from entropylong_assets.stages.entropy.splice import (
    WINDOWS,
    Kind,
    Segment,
    SplicedScorer,
    merge_windows,
    segments_of,
)
from entropylong_assets.stages.entropy.splice_support import splice_fault
from entropylong_assets_tests.stages.entropy import tiny

MODELS: dict[str, Callable[..., ScoringModel]] = {"llama": tiny.llama, "gemma3": tiny.gemma3}


def dense_splice(
    model: ScoringModel, context: np.ndarray, root: np.ndarray, start: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and surprisal of the tokens start + 1 .. end of a root, given a context.

    One sequence [C; D], positions from 0. Tokens of D before `start` see D alone; later ones see
    all before them.
    """
    tokens = torch.tensor(np.concatenate([context, root[: end + 1]]))[None]
    count, size = tokens.shape[1], len(context)
    distance = torch.arange(count)[:, None] - torch.arange(count)
    sees = distance >= 0
    sees[size : size + start, :size] = False

    def additive(seen: torch.Tensor) -> torch.Tensor:
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]

    config = model.hf_model.config
    masks: Any = additive(sees)
    if window := getattr(config, "sliding_window", None):
        masks = {"full_attention": masks, "sliding_attention": additive(sees & (distance < window))}
    config._attn_implementation = "eager"
    with torch.inference_mode():
        logits = model.hf_model(
            input_ids=tokens,
            attention_mask=masks,
            position_ids=torch.arange(count)[None],
            use_cache=False,
        ).logits[0]
    config._attn_implementation = "sdpa"
    log_p = torch.log_softmax(logits.double(), -1)[size + start : size + end]
    targets = tokens[0, size + start + 1 : size + end + 1]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return entropy.numpy(), -log_p.gather(1, targets[:, None])[:, 0].numpy()


class Case:
    """Two roots and three contexts of a tiny model, with anchors; every pair of both is scored."""

    def __init__(self, model: ScoringModel) -> None:
        draw = np.random.default_rng(3)
        self.model = model
        self.roots = [draw.integers(3, tiny.VOCAB, n) for n in (220, 150)]
        self.contexts = [
            np.concatenate([[1], draw.integers(3, tiny.VOCAB, n), [2]]) for n in (1, 40, 17)
        ]
        # Near the beginning, neighbours, windows that overlap, that touch, and that are far apart.
        self.anchors = [[0, 5, 80, 120, 130, 210], [70, 134, 149]]

    def spliced(self, kind: Kind, pack_tokens: int = 300) -> list[tuple[int, int, PositionScores]]:
        """(root, context, scores of the root's anchors) for every pair."""
        scorer = PackedScorer(self.model, pack_tokens=pack_tokens)
        spliced = SplicedScorer(scorer)
        contexts = spliced.keep(self.contexts, [-len(c) for c in self.contexts])
        roots = spliced.keep(self.roots, [0 for _ in self.roots])
        pairs, segments, numbers = [], [], []
        for r, root in enumerate(self.roots):
            for c, context in enumerate(self.contexts):
                made = segments_of(
                    kind,
                    context,
                    root,
                    self.anchors[r],
                    Range(contexts.starts[c], len(context)),
                    Range(roots.starts[r], len(root)),
                )
                numbers.append(range(len(segments), len(segments) + len(made)))
                segments += made
                pairs.append((r, c))
        scores = spliced.score(segments, contexts, roots)
        return [
            (
                r,
                c,
                join_scores([scores[i] for i in which]),
            )
            for (r, c), which in zip(pairs, numbers, strict=True)
        ]


def runs(anchors: list[int], width: int) -> list[tuple[int, list[int]]]:
    """Windows by brute force: runs of neighbouring tokens that precede an anchor by `width`."""
    inside = {u for t in anchors for u in range(max(t - width, -1 if t <= width else 0), t)}
    found = []
    for first in sorted(u for u in inside if u - 1 not in inside):
        last = first
        while last in inside:
            last += 1
        found.append((first, [t for t in anchors if first < t <= last]))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_the_runs_of_tokens_before_anchors(seed: int) -> None:
    draw = np.random.default_rng(seed)
    anchors = sorted(draw.choice(400, 9, replace=False).tolist())
    assert merge_windows(anchors, 16) == runs(anchors, 16)
    assert merge_windows(anchors, None) == [(-1, anchors)]


@pytest.mark.parametrize("name", MODELS)
def test_splice_is_its_dense_definition(name: str) -> None:
    """Guards against wrong positions, keys of other roots or contexts, and missed windows."""
    case, compared = Case(MODELS[name]()), 0
    for r, c, scores in case.spliced("splice"):
        root, context = case.roots[r], case.contexts[c]
        for start, scored in merge_windows(case.anchors[r], WINDOWS["splice"]):
            if start < 0:
                continue  # the next test compares these with the plain definition
            entropy, surprisal = dense_splice(case.model, context, root, start, scored[-1])
            at = [t - start - 1 for t in scored]
            own = [case.anchors[r].index(t) for t in scored]
            assert np.allclose(scores.entropy_N[own], entropy[at], atol=1e-5, rtol=0)
            assert np.allclose(scores.surprisal_N[own], surprisal[at], atol=1e-5, rtol=0)
            exact = score_plainly(
                case.model,
                ScoringRequest(np.concatenate([context, root]), len(context) + np.array(scored)),
            )
            assert np.abs(exact.entropy_N - entropy[at]).max() > 1e-3, "else nothing is compared"
            compared += len(scored)
    assert compared == 3 * 4 + 3 * 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["exact", "splice", "bare"])
def test_whole_roots_and_bare_windows_are_the_plain_definition(name: str, kind: Kind) -> None:
    """Exact scores from kept keys of the context, windows that hold all of the root, and windows
    that follow the context."""
    case, width = Case(MODELS[name]()), WINDOWS[kind]
    compared = 0
    for r, c, scores in case.spliced(kind):
        root, context = case.roots[r], case.contexts[c]
        for start, scored in merge_windows(case.anchors[r], width):
            if kind == "splice" and start >= 0:
                continue
            before = max(start, 0)
            request = ScoringRequest(
                np.concatenate([context, root[before:]]), len(context) + np.array(scored) - before
            )
            plain = score_plainly(case.model, request)
            own = [case.anchors[r].index(t) for t in scored]
            assert np.allclose(scores.entropy_N[own], plain.entropy_N, atol=1e-5, rtol=0)
            assert np.allclose(scores.surprisal_N[own], plain.surprisal_N, atol=1e-5, rtol=0)
            compared += len(scored)
    assert compared >= 6


def float_kernel(*arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the flash kernel returns for ranges of keys, in float64, one range at a time."""
    query, key, value, borders, starts, longest_q, longest_k, _, causal, _ = arguments
    counts, scale = options["seqused_k"].tolist(), options["scale"]
    result, log_sum = torch.zeros_like(query), torch.full(query.shape[1::-1], torch.inf)
    groups = query.shape[1] // key.shape[1]
    for g, (a, b) in enumerate(zip(borders.tolist(), borders.tolist()[1:], strict=False)):
        assert b - a <= longest_q
        assert counts[g] <= longest_k
        keys = slice(int(starts[g]), int(starts[g]) + counts[g])
        if not counts[g]:
            continue
        k = key[keys].double().repeat_interleave(groups, 1)
        v = value[keys].double().repeat_interleave(groups, 1)
        weights = torch.einsum("qhe,khe->hqk", query[a:b].double(), k) * scale
        if causal:
            assert b - a == counts[g]
            weights += torch.full(weights.shape[1:], -torch.inf).triu(1)
        result[a:b] = torch.einsum("hqk,khe->qhe", weights.softmax(-1), v).to(query.dtype)
        log_sum[:, a:b] = weights.logsumexp(-1)
    return result, log_sum


def test_parts_of_the_flash_kernel_are_joined_into_one_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards the path of CUDA: ranges, their joining, and segments that see no root."""
    case = Case(tiny.llama())
    expected = case.spliced("splice")
    calls = []

    def kernel(*arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(options["seqused_k"]))
        return float_kernel(*arguments, **options)

    monkeypatch.setattr(splice_attention, "flash_fits", lambda _: True)
    monkeypatch.setattr(splice_attention, "flash_kernel", lambda: kernel)
    for (_, _, a), (_, _, b) in zip(case.spliced("splice", 2000), expected, strict=True):
        assert np.allclose(a.entropy_N, b.entropy_N, atol=1e-5, rtol=0)
    # Segments with the same keys of the root are one range: 6 contexts, 9 ranges of the root.
    assert sorted(set(calls))[0] < max(calls)


def test_a_pass_is_as_large_as_the_engine_allows() -> None:
    scorer = PackedScorer(tiny.llama(), pack_tokens=100)
    spliced = SplicedScorer(scorer)
    before, seen = scorer.usage.snapshot(), []
    kept = spliced.keep([np.arange(3, 40)] * 5, [-37] * 5, seen.append)
    assert sum(seen) == 5 * 37
    assert max(seen) <= 100
    assert kept.tokens == 185
    layers = scorer.hf_model.config.num_hidden_layers
    assert kept.bytes_per_token == layers * 2 * 2 * 8 * 4  # keys and values, 2 heads of 8 floats
    segment = Segment(np.arange(3, 9), np.array([5]), np.array([9]), 0, Range(0, 37), Range(0, 0))
    assert len(spliced.score([segment], kept, kept)[0].entropy_N) == 1
    assert scorer.usage.since(before)["forward_tokens"] == 185 + 6


def test_models_whose_keys_fit_no_other_place_are_named() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    special = {"bos_token_id": 1, "eos_token_id": 2}
    learned = tiny._model(GPT2LMHeadModel, GPT2Config(vocab_size=tiny.VOCAB, **shape, **special))
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    cases = {
        "its positions are not rotary": learned,
        "depend on the length": tiny.llama(rope_parameters=scaled),
    }
    for reason, model in cases.items():
        assert reason in (splice_fault(PackedScorer(model)) or "")
    for name in MODELS:
        assert splice_fault(PackedScorer(MODELS[name]())) is None
    single = PackedScorer(tiny.llama(), mode="single")
    assert "several sequences per forward pass" in (splice_fault(single) or "")


def test_keys_that_depend_on_their_place_are_found_by_comparing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rotary model whose queries also grow with the position, as Llama 4's do."""
    model = tiny.llama()
    layer = model.hf_model.model.layers[1].self_attn
    scorer, own = PackedScorer(model), type(layer).forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        place = options["position_ids"].abs()[..., None]
        return own(self, hidden_states * (1 + 0.1 * place), *args, **options)

    monkeypatch.setattr(type(layer), "forward", forward)
    assert "more than distances" in (splice_fault(scorer) or "")


def test_a_full_gpu_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure: a lack of memory that may pass is reported as a model that can't be spliced, and
    the step is not retried."""
    scorer = PackedScorer(MODELS["llama"]())

    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SplicedScorer, "keep", fill)
    with pytest.raises(torch.OutOfMemoryError):
        splice_fault(scorer)

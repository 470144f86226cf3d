"""Entropy and surprisal against closed forms and a float64 computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from entropylong_assets.stages.entropy.kernels import Head, entropy_and_surprisal, reduce_logits_


def brute_force(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> tuple[np.ndarray, ...]:
    """float64, one position at a time, from probabilities rather than logsumexp."""
    z = hidden.double().numpy() @ head.weight_VD.double().numpy().T
    if head.bias_V is not None:
        z = z + head.bias_V.double().numpy()
    if head.softcap is not None:
        z = head.softcap * np.tanh(z / head.softcap)
    entropies, surprisals = [], []
    for row, target in zip(z, targets.tolist(), strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        entropies.append(-sum(x * math.log(x) for x in p if x > 0))
        surprisals.append(-math.log(p[target]) if p[target] > 0 else math.inf)
    return np.array(entropies), np.array(surprisals)


@pytest.mark.parametrize("chunk_logits", [1, 1000, 1 << 24])
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_float64(chunk_logits: int, softcap: float | None, bias: bool) -> None:
    torch.manual_seed(chunk_logits)
    hidden = torch.linspace(0.02, 2, 29)[:, None] * torch.randn(29, 16)
    weight = torch.randn(503, 16)
    head = Head(weight, torch.randn(503) if bias else None, softcap)
    targets = torch.randint(0, 503, (29,))
    got = entropy_and_surprisal(hidden, targets, head, chunk_logits=chunk_logits)
    expected = brute_force(hidden, head, targets)
    assert np.ptp(expected[0]) > 1.5, "sharp and flat positions"
    for mine, oracle in zip(got, expected, strict=True):
        assert np.abs(mine.numpy() - oracle).max() < 1e-5


def test_closed_forms() -> None:
    """Uniform logits give ln V, a certain token 0; a shift of all logits changes nothing."""
    rows = torch.zeros(3, 1000)
    rows[1, 7] = 1e4
    rows[2] = -3e4
    entropy, surprisal = reduce_logits_(rows.clone(), torch.tensor([3, 7, 0]))
    assert entropy.tolist() == pytest.approx([math.log(1000), 0, math.log(1000)], abs=1e-6)
    assert surprisal.tolist() == pytest.approx([math.log(1000), 0, math.log(1000)], abs=1e-6)


def test_ruled_out_tokens_count_nothing() -> None:
    """Guards against 0·(-inf) = nan where a model sets logits to -inf."""
    rows = torch.zeros(1, 8)
    rows[0, 4:] = -math.inf
    entropy, surprisal = reduce_logits_(rows, torch.tensor([0]))
    assert entropy.item() == pytest.approx(math.log(4)) == surprisal.item()


def test_small_entropies_keep_their_digits() -> None:
    """Guards against ln Σ - Σ p z with both terms large: one step of 60 is 4e-6."""
    z = torch.full((1, 2), 60.0)
    z[0, 1] -= 17
    p = 1 / (1 + math.exp(17))
    expected = -p * math.log(p) - (1 - p) * math.log1p(-p)
    entropy, _ = reduce_logits_(z, torch.tensor([0]))
    assert 0 < entropy.item() == pytest.approx(expected, abs=2e-7)


def test_memory_does_not_grow_with_length_times_vocabulary() -> None:
    """Guards against a [N, V] tensor: 4,096 x 50,000 float32 would take 819 MB."""
    from torch.profiler import ProfilerActivity, profile

    hidden, weight = torch.randn(4096, 8), torch.randn(50_000, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        entropy_and_surprisal(hidden, torch.zeros(4096, dtype=torch.int64), Head(weight))
    held = largest = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    assert 50e6 < largest < 300e6


def test_no_positions() -> None:
    entropy, surprisal = entropy_and_surprisal(
        torch.empty(0, 4), torch.empty(0, dtype=torch.int64), Head(torch.randn(9, 4))
    )
    assert len(entropy) == len(surprisal) == 0

"""Packs of sequences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from entropylong_assets.stages.entropy.batching import pack


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 200))
def test_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    packs = pack(lengths, budget)
    assert sorted(n for p in packs for n in p) == list(range(len(lengths)))
    for members in packs:
        assert members
        assert len(members) == 1 or sum(lengths[n] for n in members) <= budget
    fewest = -(-sum(min(n, budget) for n in lengths) // budget)
    assert len(packs) <= 11 * fewest / 9 + 1 or max(lengths) > budget // 3


def test_packs_of_real_lengths_are_nearly_full() -> None:
    """[C; D] of chunks of 64 to 512 and roots of 256 to 4,096 tokens, on a GPU's budget."""
    import numpy as np

    draw = np.random.default_rng(0)
    lengths = [
        int(c + d)
        for c, d in zip(draw.integers(64, 513, 400), draw.integers(256, 4097, 400), strict=True)
    ]
    packs = pack(lengths, 16_384)
    full = [sum(lengths[n] for n in members) / 16_384 for members in packs[:-1]]
    assert min(full) > 0.9
    assert np.mean(full) > 0.97

"""Counts and choice of a mixture.

The failures guarded against: a share that is off by more than a sample, a part that gives more than
it has, a smaller total than is possible, a choice that depends on the order of the shards, and
weights that don't add up to 1 or leave a source out.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from entropylong_assets.stages.training_data.mixture import (
    Entry,
    choose,
    count_samples,
    part_weights,
    sampling_weights,
)

SHARES = {"constructed": 0.6, "natural": 0.3, "short": 0.1}


@pytest.mark.parametrize(
    ("available", "repeat", "expected"),
    [
        ((60, 30, 10), 1, (60, 30, 10)),
        ((60, 15, 10), 1, (30, 15, 5)),
        ((600, 30, 10), 1, (60, 30, 10)),
        ((60, 30, 0), 1, (0, 0, 0)),
        ((60, 15, 10), 2, (60, 30, 10)),
        ((60, 15, 10), 9, (60, 30, 10)),
    ],
)
def test_smallest_part_limits_the_total(
    available: tuple[int, ...], repeat: int, expected: tuple[int, ...]
) -> None:
    counts = count_samples(SHARES, dict(zip(SHARES, available, strict=True)), repeat)
    assert tuple(counts.values()) == expected


def test_shares_are_off_by_at_most_one_sample_and_no_larger_total_is_possible() -> None:
    draw = np.random.default_rng(0)
    totals = []
    for _ in range(2000):
        parts = draw.integers(0, 20, 3)
        if not parts.sum():
            continue
        exact = [Fraction(int(p), int(parts.sum())) for p in parts]
        shares = {name: float(s) for name, s in zip(SHARES, exact, strict=True)}
        available = dict(zip(SHARES, draw.integers(0, 300, 3).tolist(), strict=True))
        counts = count_samples(shares, available)
        total = sum(counts.values())
        for name, share in zip(SHARES, exact, strict=True):
            assert counts[name] <= available[name]
            assert abs(counts[name] - share * total) <= 1
        larger = total + 2
        assert any(share * larger > available[n] for n, share in zip(SHARES, exact, strict=True))
        totals.append(total)
    assert max(totals) > 300
    assert 0 in totals


def test_choice_is_by_hash_and_repeats_evenly() -> None:
    entries = [Entry("natural", f"s-{i % 3}", f"id{i}") for i in range(10)]
    chosen = choose(entries, 4, seed=1)
    assert choose(entries[::-1], 4, seed=1) == chosen
    assert choose(entries, 4, seed=2) != chosen
    assert choose(entries, 7, seed=1)[:4] == chosen
    repeated = choose(entries, 25, seed=1)
    assert len({e.name for e in repeated}) == 25
    uses = [sum(e.sample_id == f"id{i}" for e in repeated) for i in range(10)]
    assert sorted(uses) == [2] * 5 + [3] * 5
    assert {e.copy for e in repeated if e.sample_id == chosen[0].sample_id} == {0, 1, 2}


def test_weights_add_up_and_divide_a_part_by_samples() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        parts = draw.integers(1, 20, 3)
        shares = {n: float(p / parts.sum()) for n, p in zip(SHARES, parts, strict=True)}
        groups = {
            f"{part}-source-{i}": int(draw.integers(1, 10_000))
            for part in SHARES
            for i in range(int(draw.integers(1, 5)))
        }
        weights = sampling_weights(shares, groups)
        assert list(weights) == list(groups)
        assert sum(Fraction(str(w)) for w in weights.values()) == 1
        assert min(weights.values()) > 0
        for part, weight in part_weights(weights).items():
            of_part = {g: n for g, n in groups.items() if g.startswith(f"{part}-")}
            assert weight == pytest.approx(shares[part], abs=1e-8)
            for group, n in of_part.items():
                share = shares[part] * n / sum(of_part.values())
                assert weights[group] == pytest.approx(share, abs=2e-9)


def test_a_part_without_samples_leaves_its_weight_to_the_others() -> None:
    weights = sampling_weights(SHARES, {"constructed-a": 5, "natural-a": 1, "natural-b": 2})
    assert weights == {
        "constructed-a": 0.666666667,
        "natural-a": 0.111111111,
        "natural-b": 0.222222222,
    }
    assert sampling_weights(SHARES, {}) == {}

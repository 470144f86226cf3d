"""A mixture of constructed samples, natural windows and packed short documents.

All samples have the same length, so that shares of tokens are shares of samples. The total is the
largest for which every part has enough samples; which samples of a part are used is decided by
hash, so that the same inputs and seed give the same mixture.

Every part has files of its own, so that a trainer can draw from the parts by weight. The weights
are written as each trainer reads them (`ExportFormat.usage`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entropylong_assets.stages.samples.ordering import hash_key

WEIGHT_UNITS = 10**9
"""Sampling weights are multiples of 1 / WEIGHT_UNITS."""


def group_of(domain: str, part: str | None) -> str:
    """The name of the files of a part's samples from a source: `<part>-<source>`.

    Without a part, that of the source.
    """
    return domain if part is None else f"{part}-{domain}"


def part_of(group: str) -> str:
    """The part of a mixture that a group belongs to."""
    return group.partition("-")[0]


def sampling_weights(shares: Mapping[str, float], groups: Mapping[str, int]) -> dict[str, float]:
    """The weight of each group: the share of its part, divided among its groups by samples.

    shares: of the parts. groups: samples per group. The weights add up to 1, exactly in multiples
    of 1 / WEIGHT_UNITS. If a part has no group, its share goes to the others.
    """
    samples = Counter[str]()
    for group, count in groups.items():
        samples[part_of(group)] += count
    parts = {part: share for part, share in shares.items() if samples[part]}
    total = sum(parts.values())
    exact = {
        group: WEIGHT_UNITS * parts[part_of(group)] / total * count / samples[part_of(group)]
        for group, count in groups.items()
    }
    units = {group: math.floor(weight) for group, weight in exact.items()}
    missing = WEIGHT_UNITS - sum(units.values()) if units else 0
    for group in sorted(exact, key=lambda g: (units[g] - exact[g], g))[:missing]:
        units[group] += 1
    return {group: n / WEIGHT_UNITS for group, n in units.items()}


def part_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The sampling weight of each part, from those of its groups."""
    units = Counter[str]()
    for group, weight in weights.items():
        units[part_of(group)] += round(weight * WEIGHT_UNITS)
    return {part: n / WEIGHT_UNITS for part, n in units.items()}


def count_samples(
    shares: Mapping[str, float],
    available: Mapping[str, int],
    repeat: int = 1,
    total: int | None = None,
) -> dict[str, int]:
    """Samples per part: each differs from its share of the total by less than one sample.

    shares: add up to 1. available: samples per part. repeat: maximum number of times a sample is
    used; the total is then at most what the part that lasts longest gives without repetition.
    total: maximum number of samples.
    """
    wanted = {part: share for part, share in shares.items() if share > 0}
    possible = math.floor(
        min(
            min(available[part] * repeat / share for part, share in wanted.items()),
            max(available[part] / share for part, share in wanted.items()),
        )
        + 1e-9
    )
    total = possible if total is None else min(possible, total)
    exact = {part: total * share for part, share in wanted.items()}
    counts = {part: math.floor(n + 1e-9) for part, n in exact.items()}
    # Largest remainders first. A part that has no sample left is passed over, as it is full.
    rest = total - sum(counts.values())
    for part in sorted(wanted, key=lambda p: (counts[p] - exact[p], p)):
        if rest and counts[part] < available[part] * repeat:
            counts[part] += 1
            rest -= 1
    return {part: counts.get(part, 0) for part in shares}


@dataclass(frozen=True)
class Entry:
    """A sample of the mixture."""

    part: str
    """`constructed`, `natural` or `short`."""
    shard: str
    sample_id: str
    """Of the sample that it is made of."""
    copy: int = 0
    """0, or the number of a repetition."""

    @property
    def name(self) -> str:
        """Its own id in the export."""
        return f"{self.sample_id}~{self.copy}" if self.copy else self.sample_id


def choose(entries: Sequence[Entry], count: int, seed: int) -> list[Entry]:
    """`count` of these entries in an order by hash; all of them once before any is repeated."""
    ranked = sorted(entries, key=lambda e: hash_key(seed, "mixture", e.part, e.sample_id))
    return [
        Entry(e.part, e.shard, e.sample_id, number // len(ranked))
        for number in range(count)
        for e in (ranked[number % len(ranked)],)
    ]
